"""The exceptions of this package."""

from shards.plain import printable
from shards.redaction import redacted


class ShardError(ValueError):
    """A shard set has a problem. The message is one line: what, where, and how to mend it.

    A message may quote hostile text from a set. So control characters become escapes, and secrets
    in addresses are removed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(redacted(message)))


class CorruptSampleError(ShardError):
    """The content of a sample differs from what was written.

    Attributes:
        source_uri: The source of the sample according to its index; empty if unknown.
    """

    def __init__(self, message: str, source_uri: str = "") -> None:
        super().__init__(message)
        self.source_uri = printable(redacted(source_uri))
