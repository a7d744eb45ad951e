"""`perceiver evaluate`: every metric of a model on any split of any set, and its worst samples."""
