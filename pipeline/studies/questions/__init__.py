"""The studies: one file for each question."""
