"""The one exception of this package that a user can mend."""


class ClusterError(RuntimeError):
    """The machines cannot do what was asked; the text says why and how to mend it, in one line."""
