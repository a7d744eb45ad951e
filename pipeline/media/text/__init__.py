"""Texts as UTF-8 bytes."""
