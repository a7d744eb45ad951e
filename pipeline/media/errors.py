"""The one exception of the decoders."""


class MediaError(ValueError):
    """A file that cannot be used, with the reason in one line."""
