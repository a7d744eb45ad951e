"""The exception of this package. A user can resolve its cause."""


class ClusterError(RuntimeError):
    """The machines cannot do what was requested. One line says why, and how to mend it.

    Secrets in the addresses that it quotes are removed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_redacted(message))


def _redacted(message: str) -> str:
    # Imported here because it imports pyarrow, which the command line must start without.
    from shards.redaction import redacted

    return redacted(message)
