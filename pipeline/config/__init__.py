"""The configuration: its sections, its reader, and the shipped YAML files."""
