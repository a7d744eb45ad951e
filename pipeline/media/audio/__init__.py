"""Audio: the format, files, resampling, log-mel frames."""
