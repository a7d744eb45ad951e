"""What a search algorithm is: it chooses the settings of a study's trials."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pipeline.config.conditions import Settings, Space

DEFAULT_TRIALS = 8


@dataclass(frozen=True)
class Outcome:
    """What became of the settings that a sampler has drawn.

    Attributes:
        values: The score, where higher is better, and then the value of each further objective,
            where lower is better; None if the training failed or the settings were refused.
        stopped_at: The number of samples after which a scheduler stopped the training; None if it
            reached its end.
    """

    values: tuple[float, ...] | None
    stopped_at: int | None = None


class Sampler(ABC):
    """Draw the settings of a study, one after another.

    The draws must depend only on the calls so far, because a study that was killed repeats them.
    """

    @abstractmethod
    def ask(self) -> Settings | None:
        """Draw the next settings; None if there are no others."""

    @abstractmethod
    def tell(self, draw: int, outcome: Outcome) -> None:
        """Take the outcome of settings.

        Settings that failed may be tried again, and then have another outcome.

        Args:
            draw: The number of the draw, counted from 0.
            outcome: What became of it.
        """


class Search(ABC):
    """A way to choose the settings of trials.

    Attributes:
        default_trials: The number of trials if `study.num_trials` is null.
        takes_objectives: Whether it can search for several objectives at once.
    """

    default_trials = DEFAULT_TRIALS
    takes_objectives = True

    def num_trials(self, space: Space, asked: int | None) -> int:
        """Return the number of settings that the study tries.

        Args:
            space: The values of each dotted field.
            asked: The value of `study.num_trials`.

        Raises:
            ValueError: The algorithm cannot search this space, or not with this many trials.
        """
        return self.default_trials if asked is None else asked

    @abstractmethod
    def sampler(self, space: Space, seed: int, num_objectives: int = 1) -> Sampler:
        """Return a new sampler.

        Args:
            space: The values of each dotted field.
            seed: The seed of the study.
            num_objectives: The number of values in each outcome.
        """


class SearchAlgorithm(Search):
    """Choose the settings of every trial before the first one starts.

    The settings depend only on the space and the seed. So neither concurrency nor time changes
    them, and a study that was killed continues with the same trials.
    """

    @abstractmethod
    def settings(self, space: Space, num_trials: int, seed: int) -> list[Settings]:
        """Return the settings of every trial, by number.

        A finished study continues when `study.num_trials` grows. So a larger number of trials must
        begin with the settings of a smaller number. The list is shorter if there are no others.

        Args:
            space: The values of each dotted field.
            num_trials: The number of trials.
            seed: The seed of the study.
        """

    def sampler(self, space: Space, seed: int, num_objectives: int = 1) -> Sampler:
        """Return a sampler of `settings`. Outcomes change nothing."""
        return _FixedSampler(self, space, seed)


class _FixedSampler(Sampler):
    """The settings of a `SearchAlgorithm`, one after another."""

    def __init__(self, algorithm: SearchAlgorithm, space: Space, seed: int) -> None:
        self._algorithm, self._space, self._seed = algorithm, space, seed
        self._drawn = 0
        self._known: list[Settings] = []

    def ask(self) -> Settings | None:
        if self._drawn == len(self._known):
            more = 2 * self._drawn + DEFAULT_TRIALS
            self._known = self._algorithm.settings(self._space, more, self._seed)
            if self._drawn == len(self._known):
                return None
        self._drawn += 1
        return dict(self._known[self._drawn - 1])

    def tell(self, draw: int, outcome: Outcome) -> None:
        pass
