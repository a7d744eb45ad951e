"""The models of the family: for each its configuration (`*_config`) and its module."""
