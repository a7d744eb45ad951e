"""The known names of one categorical column, and which of them a value is."""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from pipeline.media.table.values import is_number, name_of, numeral


class Categories:
    """The known names of a column, found by value.

    Vocabularies of earlier releases have names such as 1.0 and True. These are also found by the
    names that they have now.

    Args:
        known: The names, in the order of their indices.
    """

    def __init__(self, known: Sequence[str]) -> None:
        self._size = len(known)
        self._indices = {name: index for index, name in enumerate(known)}
        self._numerals: dict[Decimal, list[str]] = {}
        for index, name in enumerate(known):
            self._indices.setdefault(name_of(name), index)
            if (number := numeral(name)) is not None:
                self._numerals.setdefault(number, []).append(name)

    def index(self, given: Any, name: str | None) -> float:
        """Return the index of a value.

        Args:
            given: The value itself.
            name: The name that `read_name` gives it.

        Returns:
            The index of the known name; the number of known names if the value is none of them; NaN
            if the value is missing.
        """
        if isinstance(given, str) and given in self._indices:  # earlier vocabularies may know NA
            return self._indices[given]
        if name is None:
            return math.nan
        if name not in self._indices and is_number(given):
            name = self._written_longer(name) or name
        return self._indices.get(name, self._size)

    def uncertain(self, value: Any) -> list[str]:
        """Return the known texts that a number may have been before it was read as a number.

        pandas reads the text 007 as the number 7, and 3.10 as 3.1.
        """
        if not is_number(value) or not math.isfinite(value):
            return []
        name = name_of(value)
        number = numeral(name)
        names = [] if number is None else self._numerals.get(number, [])
        if all(name_of(other) == name for other in names) or self._written_longer(name):
            return []
        return names

    def _written_longer(self, name: str) -> str | None:
        """Return the only known name of a number if it ends in more zeros, such as 1.50 for 1.5."""
        number = numeral(name)
        names = [] if number is None else self._numerals.get(number, [])
        if len(names) != 1 or names[0].rstrip("0") != name:
            return None
        return names[0]
