"""Audio: the format, sound files, resampling and log-mel frames."""
