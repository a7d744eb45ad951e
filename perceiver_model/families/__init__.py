"""The models of the family. Each has its configuration in `*_config` and its module."""
