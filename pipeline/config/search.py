"""The search algorithms of a study. They choose the settings of its trials."""

import math
from collections.abc import Iterator

from pipeline.config.conditions import Settings, Space, existing, exists, in_order
from pipeline.config.optuna_search import CMAESSearch, NSGA2Search, TPESearch
from pipeline.config.sampler import DEFAULT_TRIALS, Search, SearchAlgorithm

MAX_GRID = 100_000


class GridSearch(SearchAlgorithm):
    """Try every combination of the values."""

    def num_trials(self, space: Space, asked: int | None) -> int:
        """Return the number of combinations. Any other requested number is refused."""
        for path, values in space.items():
            if values.levels is None:
                raise ValueError(
                    f"space.{path}: search 'grid' needs choice, integer or quniform, since it runs "
                    f"every value; this is {values.kind}"
                )
        combinations = 0
        for _ in _combinations(space, in_order(space), {}):
            combinations += 1
            if combinations > MAX_GRID:
                raise ValueError(
                    f"search 'grid' runs every combination of the values, which are more than "
                    f"{MAX_GRID}; narrow space, or take another search"
                )
        # Before num_trials could be null, its default was written to the runs of grid studies.
        if asked not in (None, DEFAULT_TRIALS, combinations):
            raise ValueError(
                f"num_trials is {asked}, but search 'grid' runs every combination of the "
                f"choices, which are {combinations}; leave num_trials out"
            )
        return combinations

    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """Return the combinations. The values of the last field change fastest."""
        return [*_combinations(space, in_order(space), {})]


def _combinations(space: Space, fields: list[str], before: Settings) -> Iterator[Settings]:
    """Yield every combination of the values of fields, beside those of the fields before them."""
    if not fields:
        yield dict(sorted(before.items()))
        return
    field, *left = fields
    if not exists(space, field, before):
        yield from _combinations(space, left, before)
        return
    values = space[field]
    assert values.levels is not None  # `num_trials` has checked it
    levels = [values.level(index) for index in range(values.levels)]
    for value in {(type(each), each): each for each in levels}.values():
        yield from _combinations(space, left, {**before, field: value})


class RandomSearch(SearchAlgorithm):
    """Draw each value independently."""

    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """Draw the values, trial by trial."""
        import numpy as np

        # The only generator of NumPy whose stream never changes between versions.
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
        fields = sorted(space)
        return [
            existing(space, {field: space[field].at(random.random_sample()) for field in fields})
            for _ in range(num_trials)
        ]


class SobolSearch(SearchAlgorithm):
    """Fill the space evenly: a Sobol sequence, scrambled by the seed (scipy)."""

    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """Return the first points of the sequence."""
        import numpy as np
        from scipy.stats import qmc

        fields = sorted(space)
        sequence = qmc.Sobol(len(fields), scramble=True, rng=np.random.default_rng(seed))
        rows = sequence.random_base2(math.ceil(math.log2(max(num_trials, 1))))[:num_trials]
        return [
            existing(
                space, {f: space[f].at(float(share)) for f, share in zip(fields, row, strict=True)}
            )
            for row in rows
        ]


SEARCHES: dict[str, Search] = {
    "grid": GridSearch(),
    "random": RandomSearch(),
    "sobol": SobolSearch(),
    "tpe": TPESearch(),
    "cmaes": CMAESSearch(),
    "nsga2": NSGA2Search(),
}
"""The search algorithms by their names in `study.search`."""
