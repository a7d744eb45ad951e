"""The search algorithms of a study. They choose the settings of its trials."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pipeline.config.space import SpaceConfig

Space = Mapping[str, SpaceConfig]
Settings = dict[str, Any]
"""The value of a trial for each dotted field."""

DEFAULT_TRIALS = 8


class SearchAlgorithm(ABC):
    """Choose the settings of every trial before the first one starts.

    The settings depend only on the space and the seed. So neither concurrency nor time changes
    them, and a study that was killed continues with the same trials.
    """

    @abstractmethod
    def num_trials(self, space: Space, asked: int | None) -> int:
        """Return the number of trials of the study.

        Args:
            space: The values of each dotted field.
            asked: The value of `study.num_trials`.

        Raises:
            ValueError: The algorithm cannot search this space, or not with this many trials.
        """

    @abstractmethod
    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """Return the settings of every trial, by number.

        A finished study continues when `study.num_trials` grows. So a larger number of trials must
        begin with the settings of a smaller number.

        Args:
            space: The values of each dotted field.
            num_trials: The number of trials.
            seed: The seed of the study.
        """


class GridSearch(SearchAlgorithm):
    """Try every combination of the choices."""

    def num_trials(self, space: Space, asked: int | None) -> int:
        """Return the number of combinations. Any other requested number is refused."""
        for path, values in space.items():
            if values.choice is None:
                raise ValueError(f"space.{path}: search 'grid' needs {{choice: […]}}")
        combinations = math.prod(len(values.choice or ()) for values in space.values())
        # Before num_trials could be null, its default was written to the runs of grid studies.
        if asked not in (None, DEFAULT_TRIALS, combinations):
            raise ValueError(
                f"num_trials is {asked}, but search 'grid' runs every combination of the "
                f"choices, which are {combinations}; leave num_trials out"
            )
        return combinations

    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """Return the combinations. The values of the last field change fastest."""
        fields = sorted(space)
        choices = [space[field].choice or () for field in fields]
        return [dict(zip(fields, values, strict=True)) for values in itertools.product(*choices)]


class RandomSearch(SearchAlgorithm):
    """Draw each value independently."""

    def num_trials(self, space: Space, asked: int | None) -> int:
        """Return the requested number, or the default."""
        return DEFAULT_TRIALS if asked is None else asked

    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """Draw the values, trial by trial."""
        import numpy as np

        # The only generator of NumPy whose stream never changes between versions.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
        fields = sorted(space)
        return [
            {field: space[field].at(random.random_sample()) for field in fields}
            for _ in range(num_trials)
        ]


SEARCHES: dict[str, SearchAlgorithm] = {
    "grid": GridSearch(),
    "random": RandomSearch(),
}
"""The search algorithms by their names in `study.search`."""
