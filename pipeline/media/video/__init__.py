"""Video: the format, films, clips and sound tracks."""
