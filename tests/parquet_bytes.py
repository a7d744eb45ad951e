"""Parquet files written byte by byte, so that they may declare what no writer would."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

INT32, INT64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8
_ZSTD = 6


@dataclass(frozen=True)
class WrittenPage:
    """A page of texts, packed by zstd, and what its header declares.

    Attributes:
        payload: its content, unpacked.
        values: in it.
        declared: bytes that it is said to unpack into; None: those it has.
        kind: 0 of data, 2 of a dictionary.
        encoding: of the values.
    """

    payload: bytes
    values: int
    declared: int | None = None
    kind: int = 0
    encoding: int = _PLAIN

    def encode(self) -> bytes:
        """The header, and the packed payload."""
        packed = pa.Codec("zstd").compress(self.payload, asbytes=True)
        unpacked = len(self.payload) if self.declared is None else self.declared
        about = _integers(INT32, {1: self.values, 2: self.encoding})
        if self.kind == 0:
            about |= _integers(INT32, {3: _RLE, 4: _RLE})
        fields = _integers(INT32, {1: self.kind, 2: unpacked, 3: len(packed)})
        place = 5 if self.kind == 0 else 7
        return _struct(fields | {place: (STRUCT, _struct(about))}) + packed


def texts(count: int = 1) -> WrittenPage:
    """A page of `count` texts, which are unlike."""
    values = [b"t%d" % number for number in range(count)]
    return WrittenPage(b"".join(struct.pack("<I", len(v)) + v for v in values), count)


def declaring(page: WrittenPage, unpacked: int) -> WrittenPage:
    """The same page, which says that it unpacks into so many bytes."""
    return replace(page, declared=unpacked)


def repeated(count: int) -> list[WrittenPage]:
    """A dictionary of one text and a page of a few bytes that has it `count` times."""
    run = b"\1" + _varint(count << 1) + b"\0"
    return [replace(texts(), kind=2), WrittenPage(run, count, encoding=_RLE_DICTIONARY)]


def parquet(groups: Sequence[Sequence[WrittenPage]], rows: Sequence[int] | None = None) -> bytes:
    """A file of one required column of texts, `name`.

    Args:
        groups: the pages of each row group.
        rows: that each row group and, as their sum, the file declares; None: those that it has.
    """
    data, chunks = b"PAR1", []
    for place, pages in enumerate(groups):
        start, content = len(data), [page.encode() for page in pages]
        data += b"".join(content)
        values = sum(page.values for page in pages if page.kind == 0)
        first = start + (len(content[0]) if pages[0].kind == 2 else 0)
        length = len(data) - start
        column = (
            _integers(INT32, {1: 6, 4: _ZSTD})
            | {2: _list(INT32, [_varint(_PLAIN << 1)]), 3: _list(BINARY, [_text("name")])}
            | _integers(INT64, {5: values, 6: length, 7: length, 9: first})
            | (_integers(INT64, {11: start}) if pages[0].kind == 2 else {})
        )
        chunk = _integers(INT64, {2: start}) | {3: (STRUCT, _struct(column))}
        num_rows = values if rows is None else rows[place]
        group = {1: _list(STRUCT, [_struct(chunk)])} | _integers(INT64, {2: length, 3: num_rows})
        chunks.append((num_rows, _struct(group)))
    root = _struct({4: (BINARY, _text("s")), **_integers(INT32, {5: 1})})
    leaf = _struct(_integers(INT32, {1: 6, 3: 0, 6: 0}) | {4: (BINARY, _text("name"))})
    footer = _struct(
        _integers(INT32, {1: 2})
        | {2: _list(STRUCT, [root, leaf])}
        | _integers(INT64, {3: sum(count for count, _ in chunks)})
        | {4: _list(STRUCT, [group for _, group in chunks])}
    )
    return data + footer + struct.pack("<I", len(footer)) + b"PAR1"


_Fields = dict[int, tuple[int, bytes]]


def _integers(kind: int, values: dict[int, int]) -> _Fields:
    return {
        number: (kind, _varint((value << 1) ^ (value >> 63))) for number, value in values.items()
    }


def _struct(fields: _Fields) -> bytes:
    data, before = b"", 0
    for number, (kind, value) in sorted(fields.items()):
        data += bytes([(number - before) << 4 | kind]) + value
        before = number
    return data + b"\0"


def _list(kind: int, values: list[bytes]) -> tuple[int, bytes]:
    count = len(values)
    head = bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + _varint(count)
    return LIST, head + b"".join(values)


def _text(value: str) -> bytes:
    return _varint(len(value)) + value.encode()


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes(data) + bytes([value])
