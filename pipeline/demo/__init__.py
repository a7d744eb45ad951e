"""The demo: the whole pipeline on handwritten digits."""
