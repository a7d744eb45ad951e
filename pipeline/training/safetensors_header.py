"""The header of a safetensors file: what a writer in pieces, or a reader of ranges, needs to know.

A file is the header's length (8 bytes, little-endian), the header (JSON, filled up with spaces to a
multiple of 8 bytes), and the tensors' bytes without a gap. safetensors' own functions write and
read whole files. See https://github.com/huggingface/safetensors#format.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from shards.plain import is_count

MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors."""
_CODES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F32": torch.float32,
}
_CODE_OF = {dtype: code for code, dtype in _CODES.items()}
_ORDER = ("BOOL", "U8", "I8", "I16", "I32", "F32", "I64")  # as safetensors' own, largest last


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Attributes:
        name: Its name.
        dtype: Its type.
        shape: Its shape.
        offset: The offset of its first byte, from the beginning of the file.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_order(tensors: Iterable[tuple[str, torch.dtype]]) -> list[str]:
    """Return names in the order in which safetensors writes them: large types first, then names.

    Raises:
        ValueError: A type has no code.
    """
    given = dict(tensors)
    for name, dtype in given.items():
        if dtype not in _CODE_OF:
            raise ValueError(f"{name}: a checkpoint has no tensors of {dtype}")
    return sorted(given, key=lambda name: (-_ORDER.index(_CODE_OF[given[name]]), name))


def write_header(
    tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the first bytes of a file, up to the first tensor.

    Args:
        tensors: The name, type and shape of each tensor, in the order of `in_order`.
        metadata: Further texts by name.
    """
    fields: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        fields[name] = {
            "dtype": _CODE_OF[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(file: BinaryIO, size: int) -> tuple[bytes, list[Entry], dict[str, str]]:
    """Return the header of a file as it is, its tensors in the order of their bytes, and its texts.

    Args:
        file: The file, at its beginning.
        size: The number of its bytes.

    Raises:
        ValueError: It is not a safetensors file, or has floating-point numbers that are not
            float32.
    """
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError("no readable safetensors file (its header is damaged)")
    text = file.read(length)
    try:
        fields = json.loads(text)
        metadata = fields.pop("__metadata__", {})
        if not all(isinstance(each, str) for each in metadata.values()):
            raise TypeError
        entries = [_entry(name, each, 8 + length) for name, each in fields.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error) if isinstance(error, _OtherTypeError) else "its header is damaged"
        raise ValueError(f"no readable safetensors file ({reason})") from None
    entries.sort(key=lambda entry: (entry.offset, entry.num_bytes))
    end = 8 + length
    for entry in entries:
        if entry.offset != end:
            raise ValueError("no readable safetensors file (its tensors overlap or leave a gap)")
        end += entry.num_bytes
    if end != size:
        raise ValueError("no readable safetensors file (it has another length)")
    return first + text, entries, metadata


class _OtherTypeError(ValueError):
    """A tensor of a type that no checkpoint has."""


def _entry(name: str, fields: Any, start: int) -> Entry:
    code, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if code not in _CODES:
        raise _OtherTypeError(f"{name[:200]!r} is {str(code)[:20]} and not float32")
    if not (isinstance(shape, list) and all(map(is_count, [*shape, begin, end]))):
        raise TypeError
    entry = Entry(name, _CODES[code], tuple(shape), start + begin)
    if entry.num_bytes != end - begin:
        raise ValueError
    return entry
