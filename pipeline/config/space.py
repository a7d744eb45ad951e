"""The values that a study may give to one field."""

import math
from decimal import Decimal
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.config.base import ConfigBase

KINDS = ("choice", "uniform", "loguniform", "quniform", "integer", "log_integer")
Value = int | float | str | bool


class SpaceConfig(ConfigBase):
    """The values that a searched field may have. Exactly one kind of values is given.

    Attributes:
        choice: A list of values.
        uniform: The low and the high bound of a number that is drawn uniformly.
        loguniform: The low and the high bound, both positive, of a number whose logarithm is drawn
            uniformly.
        quniform: The low bound, the high bound and the step of a number that is drawn uniformly
            from low, low + step, and so on. Three whole numbers give whole numbers.
        integer: The low and the high bound of a whole number that is drawn uniformly, both
            included, and a step if it is not 1.
        log_integer: The low and the high bound of a whole number, both included and positive, whose
            logarithm is drawn uniformly.
        when: The values of other searched fields, by dotted field, with which this field exists. In
            other trials it keeps the value of the configuration.
    """

    choice: tuple[Value, ...] | None = Field(default=None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    quniform: tuple[int | float, int | float, int | float] | None = None
    integer: tuple[int, ...] | None = None
    log_integer: tuple[int, int] | None = None
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            names = ", ".join(map(repr, KINDS[:-1]))
            raise ValueError(f"give exactly one of {names} and {KINDS[-1]!r}")
        if self.choice is not None:
            return self
        told = f"is [{', '.join(f'{number:g}' for number in self._range)}]"
        if len(self._range) not in (2, 3):
            raise ValueError(f"{told}; give low, high and, if it is not 1, a step")
        low, high = self._range[:2]
        if not low < high:
            raise ValueError(f"{told}; low < high is needed")
        if (self.loguniform or self.log_integer) and low <= 0:
            raise ValueError(f"{told}; a logarithm needs 0 < low")
        if (self.quniform or self.integer) and not 0 < self._step <= high - low:
            raise ValueError(f"{told}; 0 < step <= high - low is needed")
        return self

    @model_validator(mode="after")
    def _conditions_have_values(self) -> Self:
        for field, values in self.when.items():
            if not values:
                raise ValueError(f"when.{field} is empty; give the values of {field}")
        return self

    @property
    def kind(self) -> str:
        """The kind of values, such as `choice`."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of a kind other than `choice`."""
        if self.levels is not None:
            return self.level(0), self.level(self.levels - 1)
        return self._range[0], self._range[1]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The choices, or the lowest and the highest value."""
        return self.choice if self.choice is not None else self.bounds

    @property
    def levels(self) -> int | None:
        """The number of equally likely values; None if the values are not equally likely."""
        if self.choice is not None:
            return len(self.choice)
        if self.quniform is None and self.integer is None:
            return None
        low, high = self._range[:2]
        return int((_exact(high) - _exact(low)) / _exact(self._step)) + 1

    def level(self, index: int) -> Any:
        """Return one of the `levels`, counted from 0."""
        if self.choice is not None:
            return self.choice[index]
        low, step = self._range[0], self._step
        if isinstance(low, int) and isinstance(step, int):
            return low + index * step
        return float(_exact(low) + index * _exact(step))

    def at(self, share: float) -> Any:
        """Return the value at a share of the space.

        Args:
            share: A number in [0, 1). 0 gives the first choice or the low bound.
        """
        if (levels := self.levels) is not None:
            return self.level(min(int(share * levels), levels - 1))
        low, high = self._range[:2]
        if self.log_integer:
            value = math.floor(low * ((high + 1) / low) ** share)
        elif self.loguniform:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return min(max(value, low), high)

    def holds(self, value: Value) -> bool:
        """Return whether a value can be drawn. Numbers of a continuous range cannot be named."""
        if self.choice is not None:
            return any(value == each and type(value) is type(each) for each in self.choice)
        if self.log_integer:
            low, high = self.log_integer
            return isinstance(value, int) and low <= value <= high
        if (levels := self.levels) is None or isinstance(value, bool | str):
            return False
        return any(value == self.level(index) for index in range(levels))

    @property
    def _range(self) -> tuple[int | float, ...]:
        """The numbers of a kind other than `choice`."""
        numbers: tuple[int | float, ...] = getattr(self, self.kind)
        return numbers

    @property
    def _step(self) -> int | float:
        if self.quniform is not None:
            whole = all(isinstance(number, int) for number in self.quniform)
            return self.quniform[2] if whole else float(self.quniform[2])
        return self._range[2] if len(self._range) > 2 else 1


def _exact(number: float) -> Decimal:
    """Return a number as it is written, so that 0.1 + 2 x 0.1 is 0.3."""
    return Decimal(str(number))
