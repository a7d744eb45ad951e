"""What names, digests and numbers of a shard set must look like before they are used.

All that is read from a set was written by someone else, and its own checksums prove nothing: they
are part of it.
"""

import re
from typing import Any

MAX_COUNT = 1 << 62
"""More samples than this no order permutes."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^\W_](?:[\w-]|\.(?!\.)){0,99}")
_MEMBER = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"  # last: lone halves
)


def printable(text: str) -> str:
    """`text` with escapes for what would steer a terminal, break a line or not be encoded."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def is_printable(value: Any) -> bool:
    """Whether this is a string that `printable` leaves as it is."""
    return isinstance(value, str) and not _UNPRINTABLE.search(value)


def is_sha256(value: Any) -> bool:
    """Whether this is a string of 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def is_name(value: Any) -> bool:
    """Whether this can name a split: letters, digits, '_', '-' and single '.'; no path."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def is_member(value: Any) -> bool:
    """Whether this can name a member: lower-case words with single '.', '_' or '-' between."""
    return isinstance(value, str) and bool(_MEMBER.fullmatch(value))


def is_count(value: Any, most: int = MAX_COUNT) -> bool:
    """Whether this is a whole number from 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
