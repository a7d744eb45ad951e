"""The configuration: its sections, reading it, and the shipped YAML."""
