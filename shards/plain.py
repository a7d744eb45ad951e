"""Checks of names, digests and numbers in a shard set, before they are used.

Someone else may have written a set. Its own checksums prove nothing, because they are part of it.
"""

import re
from typing import Any

MAX_COUNT = 1 << 62
"""No order can permute more samples than this."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^\W_](?:[\w-]|\.(?!\.)){0,99}")
_MEMBER = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"  # and surrogates
)


def printable(text: str) -> str:
    """Escape characters that control a terminal, break a line or cannot be encoded."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def is_printable(value: Any) -> bool:
    """Return whether `value` is a string that `printable` does not change."""
    return isinstance(value, str) and not _UNPRINTABLE.search(value)


def is_sha256(value: Any) -> bool:
    """Return whether `value` is a string of 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def is_name(value: Any) -> bool:
    """Return whether `value` can name a split: letters, digits, '_', '-', single '.'; no path."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def is_member(value: Any) -> bool:
    """Return whether `value` can name a member: lower-case words joined by one '.', '_' or '-'."""
    return isinstance(value, str) and bool(_MEMBER.fullmatch(value))


def is_count(value: Any, most: int = MAX_COUNT) -> bool:
    """Return whether `value` is an integer from 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
