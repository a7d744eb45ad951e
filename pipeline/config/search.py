"""The search algorithms of a study: which settings its trials have."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pipeline.config.space import SpaceConfig

Space = Mapping[str, SpaceConfig]
Settings = dict[str, Any]
"""Dotted field → the value that a trial has there."""

DEFAULT_TRIALS = 8


class SearchAlgorithm(ABC):
    """Chooses the settings of every trial before the first one starts.

    The settings are a function of the space and the seed alone. So neither concurrency nor time
    changes them, and a study that was killed goes on with the same trials.
    """

    @abstractmethod
    def num_trials(self, space: Space, asked: int | None) -> int:
        """How many trials the study has.

        Args:
            space: dotted field → its values.
            asked: `study.num_trials`.

        Raises:
            ValueError: the algorithm cannot search this space, or with so many trials.
        """

    @abstractmethod
    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """The settings of every trial, by number.

        A study that is done goes on when `study.num_trials` grows. So the settings of fewer
        trials must be the first of those of more.
        """


class GridSearch(SearchAlgorithm):
    """Every combination of the choices."""

    def num_trials(self, space: Space, asked: int | None) -> int:
        """The number of combinations; nothing else may be asked for."""
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
        """The combinations, the last field's values changing fastest."""
        fields = sorted(space)
        choices = [space[field].choice or () for field in fields]
        return [dict(zip(fields, values, strict=True)) for values in itertools.product(*choices)]


class RandomSearch(SearchAlgorithm):
    """Each value drawn by itself."""

    def num_trials(self, space: Space, asked: int | None) -> int:
        """As many as are asked for."""
        return DEFAULT_TRIALS if asked is None else asked

    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """The values drawn, trial by trial."""
        import numpy as np

        # Of numpy's generators the one whose stream never changes between versions.
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
"""By their names in `study.search`."""
