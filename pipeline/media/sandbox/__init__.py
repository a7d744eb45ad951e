"""Decoding in a child process without network, files or secrets."""
