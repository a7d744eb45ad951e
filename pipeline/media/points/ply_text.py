"""Read the data of a text PLY file."""

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.number_lines import listed, number_lines
from pipeline.media.points.ply_header import Column, Element, Property, cut_short, short


class TextBody:
    """Lines of numbers, one for each row of an element."""

    def __init__(self, data: bytes) -> None:
        self.lines = [line for line in data.splitlines() if line and not line.isspace()]
        self.row = 0

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
        if not element.properties:
            return {}
        lines = self.lines[self.row : self.row + element.count]
        if len(lines) < element.count:
            raise cut_short(element, len(lines))
        self.row += element.count
        if not wanted:
            return {}
        numbers, starts = number_lines(lines, f"damaged PLY: {element.name}")
        return _columns(element, wanted, numbers, starts)

    def check_end(self) -> None:
        """Check that no data follow the last element.

        Raises:
            MediaError: The file has more lines than its header says.
        """
        if self.row < len(self.lines):
            more = len(self.lines) - self.row
            raise MediaError(f"damaged PLY: it has more lines than its header says, by {more}")


def _columns(
    element: Element, wanted: tuple[str, ...], numbers: np.ndarray, starts: np.ndarray
) -> dict[str, Column]:
    columns = {}
    indices, ends = starts[:-1].copy(), starts[1:]
    for each in element.properties:
        _check_rows(element, indices < ends)
        counts = np.ones(len(indices), np.int64)
        if each.count_type is not None:
            declared = numbers[indices]
            indices += 1
            _check_rows(
                element,
                (declared >= 0) & (declared == np.floor(declared)) & (declared <= ends - indices),
            )
            counts = declared.astype(np.int64)
        if each.name in wanted:
            columns[each.name] = _typed(each, listed(numbers, indices, counts)), counts
        indices += counts
    _check_rows(element, indices == ends)
    return columns


def _check_rows(element: Element, right: np.ndarray) -> None:
    if not right.all():
        raise MediaError(
            f"damaged PLY: {element.name} {np.argmin(right) + 1} has not the numbers that the "
            "header says"
        )


def _typed(each: Property, values: np.ndarray) -> np.ndarray:
    """Return the values in the type that the header declares."""
    if each.type[0] == "f":
        with np.errstate(over="ignore"):
            return values.astype(each.type)
    bounds = np.iinfo(each.type)
    if not ((values == np.floor(values)) & (values >= bounds.min) & (values <= bounds.max)).all():
        raise MediaError(f"damaged PLY: a value of {short(each.name)} is not of its type")
    return values
