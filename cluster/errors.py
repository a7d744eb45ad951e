"""The one exception of this package that a user can mend."""


class ClusterError(RuntimeError):
    """The machines cannot do what was asked; the text says why and how to mend it, in one line.

    Secrets in addresses that it quotes are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_redacted(message))


def _redacted(message: str) -> str:
    # Imported only now: the package brings pyarrow, and the command line starts without it.
    from shards.redaction import redacted

    return redacted(message)
