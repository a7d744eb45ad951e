"""Video: the format, films, clips and their sound tracks."""
