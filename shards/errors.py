"""The exceptions of this package."""

from shards.plain import printable
from shards.redaction import redacted


class ShardError(ValueError):
    """Something is wrong with a shard set; the message is one line: what, where, how to mend.

    What a message quotes of a set may be hostile: control characters are written as escapes, so
    that none reaches a terminal. Secrets in addresses are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(redacted(message)))


class CorruptSampleError(ShardError):
    """A sample is not as it was written.

    Attributes:
        source_uri: what it was made from, as its index says; empty where that is not known.
    """

    def __init__(self, message: str, source_uri: str = "") -> None:
        super().__init__(message)
        self.source_uri = printable(redacted(source_uri))
