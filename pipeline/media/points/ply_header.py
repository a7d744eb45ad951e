"""Read the header of a PLY file: its elements, their properties, and the layout of the data."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.media.errors import MediaError

MAX_HEADER_BYTES = 2**20

TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "int64": "i8",
    "uint64": "u8",
    "float16": "f2",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
ORDERS: dict[str, Literal["little", "big"] | None] = {
    "ascii": None,
    "binary_little_endian": "little",
    "binary_big_endian": "big",
}

Column = tuple[np.ndarray, np.ndarray]
"""A property's values, with lists concatenated, and the number of values in each row."""


@dataclass(frozen=True)
class Property:
    """One number, or a count followed by a list of numbers.

    Attributes:
        name: The name of the property.
        type: NumPy's name of the type of its numbers.
        count_type: NumPy's name of the type of a list's count; None for one number.
    """

    name: str
    type: str
    count_type: str | None = None

    @property
    def num_bytes(self) -> int:
        """The number of bytes of one number."""
        return np.dtype(self.type).itemsize


@dataclass(frozen=True)
class Element:
    """An element: a number of rows that have the same properties.

    Attributes:
        name: The name of the element.
        count: The number of rows.
        properties: The properties of each row, in order.
    """

    name: str
    count: int
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Header:
    """What a file holds.

    Attributes:
        order: The byte order of binary numbers; None for text.
        elements: The elements, in the order of their data.
        num_bytes: The offset at which the data begin.
    """

    order: Literal["little", "big"] | None
    elements: tuple[Element, ...]
    num_bytes: int


def read_header(data: bytes) -> Header:
    """Return a file's header.

    Raises:
        MediaError: A line does not belong to a header, or the header has no end within 1 MiB.
    """
    orders: list[Literal["little", "big"] | None] = []
    elements: dict[str, tuple[str, int, list[Property]]] = {}
    for number, words, end in _lines(data):
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["ply"] if number == 1:
                pass
            case ["format", order, "1.0"] if order in ORDERS and not orders:
                orders.append(ORDERS[order])
            case ["element", name, count] if re.fullmatch("[0-9]{1,18}", count):
                if name in elements:
                    raise _wrong(number, f"a second element {short(name)}")
                properties: list[Property] = []
                elements[name] = (name, int(count), properties)
            case ["property", *rest] if elements:
                properties.append(_property(number, rest))
            case ["end_header"]:
                if not orders:
                    raise MediaError("damaged PLY: its header says no format")
                return Header(orders[0], tuple(map(_element, elements.values())), end)
            case _:
                raise _wrong(number, f"{short(' '.join(words))} is none of a header's lines")
    raise MediaError("cut short: its header has no end")


def cut_short(element: Element, count: int) -> MediaError:
    """Return the error for a file that ends after `count` rows of an element."""
    name = {"vertex": "points", "face": "faces"}.get(element.name, f"of {short(element.name)}")
    return MediaError(f"cut short: {count} of {element.count} {name} are there")


def _lines(data: bytes) -> Iterator[tuple[int, list[str], int]]:
    """Yield each line's number, its words, and the offset of the next line.

    The first line's ending decides which line ending the header has.
    """
    newline = b"\r" if re.match(rb"ply[ \t]*\r(?!\n)", data) else b"\n"
    start, number = 0, 0
    while (end := data.find(newline, start, MAX_HEADER_BYTES)) >= 0:
        number += 1
        yield number, data[start:end].decode("latin-1").split(), end + 1
        start = end + 1
    last = data[start:MAX_HEADER_BYTES].strip()
    if last == b"end_header" and len(data) < MAX_HEADER_BYTES:
        yield number + 1, ["end_header"], len(data)


def _property(number: int, words: list[str]) -> Property:
    match words:
        case ["list", "float" | "float16" | "float32" | "float64" | "double", *_]:
            raise _wrong(number, f"a list's count cannot be {words[1]}")
        case ["list", count_type, kind, name] if {count_type, kind} <= TYPES.keys():
            return Property(name, TYPES[kind], TYPES[count_type])
        case [kind, name] if kind in TYPES:
            return Property(name, TYPES[kind])
    raise _wrong(number, f"property {short(' '.join(words))} is of no known type")


def _element(element: tuple[str, int, list[Property]]) -> Element:
    name, count, properties = element
    if len({each.name for each in properties}) < len(properties):
        raise MediaError(f"damaged PLY: element {short(name)} has two properties of one name")
    return Element(name, count, tuple(properties))


def _wrong(number: int, reason: str) -> MediaError:
    return MediaError(f"damaged PLY: line {number} of its header: {reason}")


def short(text: str) -> str:
    """Return a file's own words, shortened and escaped for an error."""
    return ascii(text[:60])
