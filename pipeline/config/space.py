"""The values that a study may give to one field."""

import math
from typing import Any, Self

from pydantic import Field, model_validator

from pipeline.config.base import ConfigBase


class SpaceConfig(ConfigBase):
    """The values that a searched field may have. Exactly one of the three is given.

    Attributes:
        choice: A list of values.
        uniform: The low and the high bound of a number that is drawn uniformly.
        loguniform: The low and the high bound, both positive, of a number whose logarithm is drawn
            uniformly.
    """

    choice: tuple[int | float | str | bool, ...] | None = Field(default=None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.choice, self.uniform, self.loguniform)) != 1:
            raise ValueError("give exactly one of 'choice', 'uniform' and 'loguniform'")
        if self.choice is None:
            low, high = self.bounds
            if not low < high:
                raise ValueError(f"is [{low:g}, {high:g}]; low < high is needed")
            if self.loguniform and low <= 0:
                raise ValueError(f"is [{low:g}, {high:g}]; a logarithm needs 0 < low")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """The low and the high bound of `uniform` or `loguniform`."""
        bounds = self.uniform or self.loguniform
        assert bounds is not None
        return bounds

    def at(self, share: float) -> Any:
        """Return the value at a share of the space.

        Args:
            share: A number in [0, 1). 0 gives the first choice or the low bound.
        """
        if self.choice is not None:
            return self.choice[min(int(share * len(self.choice)), len(self.choice) - 1)]
        low, high = self.bounds
        if self.loguniform:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return min(max(value, low), high)
