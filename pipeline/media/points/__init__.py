"""Point clouds: the format, meshes and clouds of each file type, Fourier features."""
