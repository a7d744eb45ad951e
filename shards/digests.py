"""Canonical JSON and sha256: equal content gives equal bytes, and equal bytes have one name."""

import hashlib
import json
from typing import Any, BinaryIO

_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Encode a value as UTF-8 JSON with sorted keys, an indent of two and a final newline.

    Raises:
        ValueError: The value contains NaN or infinity, which JSON does not have.
        TypeError: JSON cannot represent the value.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the sha256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def stream_sha256(file: BinaryIO) -> str:
    """Return the sha256 of the rest of `file` as 64 hexadecimal digits. Reads it in chunks."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
