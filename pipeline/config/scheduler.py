"""What a scheduler is: it decides after which epoch a trial is stopped."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.config.conditions import Settings, Space


class SchedulerFields(Protocol):
    """What schedulers read of the section `study`."""

    @property
    def space(self) -> Space: ...

    @property
    def grace_epochs(self) -> int: ...

    @property
    def reduction_factor(self) -> int: ...

    @property
    def perturb_epochs(self) -> int: ...


@dataclass(frozen=True)
class Pace:
    """How long the trials of a study are.

    Attributes:
        epochs: The most epochs of a trial.
        samples_per_epoch: The samples of an epoch with the configuration's own batch size.
        most_samples: The most samples of a trial that is not stopped.
        seed: The seed of the study.
    """

    epochs: int
    samples_per_epoch: int
    most_samples: int
    seed: int = 0


@dataclass(frozen=True)
class Member:
    """A trial at the end of an epoch at which trials wait for each other.

    Attributes:
        trial: The number of the trial.
        score: Its score after this epoch; None if it was not finite.
        settings: Its settings.
    """

    trial: int
    score: float | None
    settings: Settings


@dataclass(frozen=True)
class Takeover:
    """A trial that goes on from the weights of another one.

    Attributes:
        trial: The number of the trial.
        donor: The number of the other one.
        settings: The settings with which the trial goes on.
    """

    trial: int
    donor: int
    settings: Settings


class Scheduler(ABC):
    """Decide which trials of a study to stop, one report after another."""

    @abstractmethod
    def stops(self, trial: int, epoch: int, samples: int, score: float) -> bool:
        """Return whether a trial is stopped after an epoch.

        This is called once for every report, in the order of arrival. The answers must depend only
        on these calls, because a study that was killed repeats them.

        Args:
            trial: The number of the trial, from 0.
            epoch: The number of epochs that it has finished, from 1.
            samples: The number of samples that it has trained on.
            score: A finite score, where higher is better.
        """

    def waits_after(self, epoch: int) -> int | None:
        """Return the next epoch, after `epoch`, at whose end trials wait for each other."""
        return None

    def takeovers(self, epoch: int, members: Sequence[Member]) -> list[Takeover]:
        """Return the trials that go on from another one's weights, when all wait.

        Args:
            epoch: The number of epochs that the trials have finished.
            members: The trials, by number.
        """
        return []
