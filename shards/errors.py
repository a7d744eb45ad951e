"""The one exception of this package."""


class ShardError(ValueError):
    """Something is wrong with a shard set; the message is one line: what, where, how to mend."""
