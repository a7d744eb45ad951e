"""Canonical JSON and sha256: equal content has equal bytes, and equal bytes have one name."""

import hashlib
import json
from typing import Any, BinaryIO

_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, two spaces of indent and a trailing newline.

    Raises:
        ValueError: NaN or infinity, for which JSON has no word.
        TypeError: a value that JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_hex(data: bytes | memoryview) -> str:
    """The sha256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def stream_sha256(file: BinaryIO) -> str:
    """The sha256 of what is left in `file`, read a piece at a time, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
