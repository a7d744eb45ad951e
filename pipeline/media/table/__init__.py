"""Tables: the format, categories, and reading values."""
