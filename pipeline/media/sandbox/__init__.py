"""Decode in a child process that has no network, no files and no secrets."""
