"""Search algorithms that learn from the trials so far: Optuna's samplers, asked and told.

Their studies are kept in memory. What a killed study needs is in its journal: a new sampler that is
asked and told in the same order draws the same settings.
"""

import warnings
from collections.abc import Callable
from typing import Any

from pipeline.config.conditions import Settings, Space, exists, in_order
from pipeline.config.sampler import Outcome, Sampler, Search
from pipeline.config.space import SpaceConfig

SEQUENTIAL_TRIALS = 32
POPULATION = 12
"""The size of NSGA-II's population. Studies have far fewer trials than Optuna's default of 50."""
_SEED_BITS = 32


class TPESearch(Search):
    """Tree-structured Parzen estimators (Bergstra et al., 2011), fields modelled together."""

    default_trials = SEQUENTIAL_TRIALS

    def sampler(self, space: Space, seed: int, num_objectives: int = 1) -> Sampler:
        """Return a sampler, whose first 10 draws are random."""
        from optuna.samplers import TPESampler

        def make(seed: int) -> Any:
            # A running trial counts as a bad one, so that parallel trials differ.
            return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)

        return OptunaSampler(make, space, seed, num_objectives)


class CMAESSearch(Search):
    """CMA-ES (Hansen and Ostermeier, 2001), with margins for whole numbers.

    It adapts the numbers that exist in every trial. Choices and fields with conditions are drawn at
    random.
    """

    default_trials = SEQUENTIAL_TRIALS
    takes_objectives = False

    def num_trials(self, space: Space, asked: int | None) -> int:
        """Return the requested number. A space without two numbers is refused."""
        numbers = sum(map(_is_adapted, space.values()))
        if numbers < 2:
            raise ValueError(
                "search 'cmaes' adapts two numbers or more, that is, fields without choice and "
                f"when; space has {numbers}; take 'tpe'"
            )
        return super().num_trials(space, asked)

    def sampler(self, space: Space, seed: int, num_objectives: int = 1) -> Sampler:
        """Return a sampler."""
        from optuna.samplers import CmaEsSampler

        adapted = {
            field: _distribution(values)
            for field, values in sorted(space.items())
            if _is_adapted(values)
        }

        class OfFixedFields(CmaEsSampler):
            # Optuna's own guess is the fields of all trials so far, which change with the trials.
            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
                return adapted

        def make(seed: int) -> Any:
            return OfFixedFields(seed=seed, with_margin=True, warn_independent_sampling=False)

        return OptunaSampler(make, space, seed, num_objectives)


class NSGA2Search(Search):
    """NSGA-II (Deb et al., 2002), for several objectives. The first population is random."""

    default_trials = 4 * POPULATION

    def sampler(self, space: Space, seed: int, num_objectives: int = 1) -> Sampler:
        """Return a sampler."""
        from optuna.samplers import NSGAIISampler

        def make(seed: int) -> Any:
            return NSGAIISampler(seed=seed, population_size=POPULATION)

        return OptunaSampler(make, space, seed, num_objectives)


def _is_adapted(values: SpaceConfig) -> bool:
    return values.choice is None and not values.when


def _distribution(values: SpaceConfig) -> Any:
    """Return Optuna's distribution of numbers, as `OptunaSampler` draws them."""
    from optuna import distributions

    if values.levels is not None:
        return distributions.IntDistribution(0, values.levels - 1)
    low, high = values.bounds
    if values.log_integer is not None:
        return distributions.IntDistribution(int(low), int(high), log=True)
    return distributions.FloatDistribution(low, high, log=values.loguniform is not None)


class OptunaSampler(Sampler):
    """An Optuna study in memory.

    Args:
        make: Makes Optuna's sampler of a seed.
        space: The values of each dotted field.
        seed: The seed of the study.
        num_objectives: The number of values in each outcome.
    """

    def __init__(
        self, make: Callable[[int], Any], space: Space, seed: int, num_objectives: int
    ) -> None:
        import numpy as np
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        short = int(np.random.SeedSequence(seed).generate_state(1)[0]) % (1 << _SEED_BITS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = make(short)
        directions: list[Any] = ["maximize", *["minimize"] * (num_objectives - 1)]
        self._study = optuna.create_study(sampler=sampler, directions=directions)
        self._space = space
        self._trials: list[Any] = []
        self._told: set[int] = set()

    def ask(self) -> Settings:
        """Draw the next settings."""
        trial = self._study.ask()
        settings: Settings = {}
        for field in in_order(self._space):
            if exists(self._space, field, settings):
                settings[field] = self._suggest(trial, field)
        self._trials.append(trial)
        return settings

    def tell(self, draw: int, outcome: Outcome) -> None:
        """Take the outcome of settings. A stopped trial counts as Optuna's pruned ones."""
        import optuna

        trial = self._trials[draw]
        several = len(self._study.directions) > 1
        if outcome.values is None:
            if draw not in self._told:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif draw in self._told:  # it failed, and was tried again
            first = self._study.trials[trial.number]
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=first.params, distributions=first.distributions, values=outcome.values
                )
            )
        elif outcome.stopped_at is not None and not several:
            trial.report(outcome.values[0], step=outcome.stopped_at)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, outcome.values)
        self._told.add(draw)

    def _suggest(self, trial: Any, field: str) -> Any:
        """Draw the value of a field: of equally likely ones, its number.

        Optuna takes the choices 1 and true for the same.
        """
        values = self._space[field]
        if values.choice is not None:
            return values.level(trial.suggest_categorical(field, range(len(values.choice))))
        if values.levels is not None:
            return values.level(trial.suggest_int(field, 0, values.levels - 1))
        low, high = values.bounds
        if values.log_integer is not None:
            return trial.suggest_int(field, int(low), int(high), log=True)
        return trial.suggest_float(field, low, high, log=values.loguniform is not None)
