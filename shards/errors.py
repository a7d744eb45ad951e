"""The one exception of this package."""

from shards.redaction import redacted


class ShardError(ValueError):
    """Something is wrong with a shard set; the message is one line: what, where, how to mend.

    Secrets in addresses that the message quotes are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))
