"""Point clouds: the format, the readers of each file type, and Fourier features."""
