"""Images: the format, JPEG, TIFF and other files, and masks."""
