"""What a user can get wrong, as an exception whose text is one clear line."""


class UserError(Exception):
    """Something the user can mend; the text says what, where and how.

    The command line prints the text alone and exits 2. Anything else that escapes a verb is a
    defect of ours and exits 1. Secrets in addresses that the text quotes are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_redacted(message))


class GateRefusedError(Exception):
    """A model did not beat the champion: nothing is broken, yet the work asked for is not done.

    The command line prints the text and exits 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_redacted(message))


def _redacted(message: str) -> str:
    # Imported only now: the package brings pyarrow, and the command line starts without it.
    from shards.redaction import redacted

    return redacted(message)
