"""Read the data of a binary PLY file."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import PointsFormat
from pipeline.media.points.ply_header import Column, Element, Property, cut_short, short


class BinaryBody:
    """Rows of bytes. Rows that have lists may differ in length."""

    def __init__(
        self, data: bytes, position: int, order: Literal["little", "big"], fmt: PointsFormat
    ) -> None:
        self.data, self.position, self.order, self.fmt = data, position, order, fmt

    def read(self, element: Element, wanted: tuple[str, ...]) -> dict[str, Column]:
        """Read the next element.

        Args:
            element: The element, from the header.
            wanted: The names of the properties to return.

        Returns:
            The values and counts of each property, by name.

        Raises:
            MediaError: The data are damaged or cut short.
        """
        stretches = _stretches(element)
        starts: Sequence[range | np.ndarray] | None = self._even_starts(element, stretches)
        if starts is None:
            starts = self._uneven_starts(element, stretches, wanted)
        columns = {}
        for stretch, begin in zip(stretches, starts, strict=True):
            offset = 0
            for each in stretch.scalars:
                if each.name in wanted:
                    values = self._values(each.type, begin, offset)
                    columns[each.name] = values, np.ones(len(values), np.int64)
                offset += each.num_bytes
            if stretch.list is not None and stretch.list.name in wanted:
                columns[stretch.list.name] = self._lists(stretch, begin)
        return columns

    def check_end(self) -> None:
        """Check that no data follow the last element.

        Raises:
            MediaError: The file has more bytes than its header says.
        """
        if more := len(self.data[self.position :].strip(b" \t\r\n\0")):
            raise MediaError(f"damaged PLY: it has more bytes than its header says, by {more}")

    def _even_starts(self, element: Element, stretches: list["_Stretch"]) -> list[range] | None:
        """Return where the stretches of all rows start; None if rows differ in length."""
        offsets, size = [], 0
        for stretch in stretches:
            offsets.append(size)
            size += stretch.num_bytes
            if element.count and stretch.list is not None:
                size += (
                    self._count(stretch, self.position + size, element, 0) * stretch.list.num_bytes
                )
        end = self.position + element.count * size
        if not stretches[:-1] and end > len(self.data):
            raise cut_short(element, (len(self.data) - self.position) // size)
        if end > len(self.data):
            return None
        starts = [
            range(self.position + offset, end + offset, size) if size else range(0)
            for offset in offsets
        ]
        for stretch, begin in zip(stretches, starts, strict=True):
            if stretch.list is not None and element.count:
                counts = self._values(stretch.count_type, begin, stretch.count_offset)
                if (counts != counts[0]).any():
                    return None
        self.position = end
        return starts

    def _uneven_starts(
        self, element: Element, stretches: list["_Stretch"], wanted: tuple[str, ...]
    ) -> list[np.ndarray]:
        """Return where the stretches of all rows start, found row by row.

        The starts of a stretch with no wanted property are left empty.
        """
        most = max(self.fmt.max_faces, self.fmt.max_points)
        if element.count > most:
            raise MediaError(f"{element.count} of {short(element.name)}, more than {most}")
        starts = [array("q") for _ in stretches]
        steps = [
            (
                into.append if stretch.has(wanted) else None,
                stretch,
                stretch.num_bytes,
                stretch.list.num_bytes if stretch.list is not None else 0,
            )
            for into, stretch in zip(starts, stretches, strict=True)
        ]
        position = self.position
        for row in range(element.count):
            for keep, stretch, num_bytes, item_bytes in steps:
                if keep is not None:
                    keep(position)
                if item_bytes:
                    position += (
                        self._count(stretch, position + num_bytes, element, row) * item_bytes
                    )
                position += num_bytes
            if position > len(self.data):
                raise cut_short(element, row)
        self.position = position
        return [np.frombuffer(each, np.int64) for each in starts]

    def _count(self, stretch: "_Stretch", end: int, element: Element, row: int) -> int:
        """Return the count before a list. The count's bytes end at `end`."""
        if end > len(self.data):
            raise cut_short(element, row)
        count = int.from_bytes(
            self.data[end - stretch.count_bytes : end], self.order, signed=stretch.signed
        )
        if count < 0:
            raise MediaError(f"damaged PLY: {short(element.name)} {row + 1} has a list of {count}")
        return count

    def _values(self, kind: str, starts: range | np.ndarray, offset: int) -> np.ndarray:
        """Return the numbers at an offset after each start."""
        dtype = np.dtype(kind).newbyteorder("<" if self.order == "little" else ">")
        if isinstance(starts, range):
            if not starts:
                return np.empty(0, dtype)
            return np.ndarray(len(starts), dtype, self.data, starts.start + offset, (starts.step,))
        at_every_byte = np.ndarray(len(self.data) - dtype.itemsize + 1, dtype, self.data, 0, (1,))
        return at_every_byte[starts + offset]

    def _lists(self, stretch: "_Stretch", starts: range | np.ndarray) -> Column:
        assert stretch.list is not None
        counts = self._values(stretch.count_type, starts, stretch.count_offset).astype(np.int64)
        begin = np.asarray(starts, np.int64) + stretch.num_bytes
        size = stretch.list.num_bytes
        before = np.cumsum(counts) - counts
        offsets = np.repeat(begin - before * size, counts) + size * np.arange(counts.sum())
        return self._values(stretch.list.type, offsets, 0), counts


@dataclass(frozen=True)
class _Stretch:
    """Scalars that follow one another in a row, and the list after them, if any.

    Attributes:
        scalars: The scalars.
        list: The list; None for scalars at the end of a row.
        num_bytes: The number of bytes of the scalars and of the list's count.
        count_type: NumPy's name of the type of the list's count.
        count_bytes: The number of bytes of the list's count.
    """

    scalars: tuple[Property, ...]
    list: Property | None
    num_bytes: int
    count_type: str = ""
    count_bytes: int = 0

    @property
    def count_offset(self) -> int:
        return self.num_bytes - self.count_bytes

    @property
    def signed(self) -> bool:
        return self.count_type.startswith("i")

    def has(self, wanted: tuple[str, ...]) -> bool:
        ours = (*self.scalars, self.list) if self.list is not None else self.scalars
        return any(each.name in wanted for each in ours)


def _stretches(element: Element) -> list[_Stretch]:
    """Return a row's stretches. Only the last one has no list."""
    stretches: list[_Stretch] = []
    scalars: list[Property] = []
    for each in element.properties:
        if each.count_type is None:
            scalars.append(each)
            continue
        count_bytes = np.dtype(each.count_type).itemsize
        num_bytes = sum(scalar.num_bytes for scalar in scalars) + count_bytes
        stretches.append(_Stretch(tuple(scalars), each, num_bytes, each.count_type, count_bytes))
        scalars = []
    size = sum(scalar.num_bytes for scalar in scalars)
    return [*stretches, _Stretch(tuple(scalars), None, size)]
