"""The entries of a study's journal, one line each (`pipeline.tuning.journal`)."""

import json
import math
from dataclasses import dataclass
from typing import Any

from pipeline.config.conditions import Settings


@dataclass(frozen=True)
class Begin:
    """A trial that begins: one training of settings.

    Attributes:
        trial: The number of the trial, from 0.
        draw: The number of the settings, in the order in which the sampler drew them, from 0.
        seed: The seed of the training.
        settings: The settings.
    """

    trial: int
    draw: int
    seed: int
    settings: Settings

    def __post_init__(self) -> None:
        _check(_are_counts(self.trial, self.draw, self.seed), "trial, draw or seed is no count")
        _check(isinstance(self.settings, dict), "settings is no object")


@dataclass(frozen=True)
class Refusal:
    """Settings that the sampler drew and that cannot be trained. They are no trial.

    Attributes:
        draw: The number of the settings.
        settings: The settings.
        refused: Why.
        is_too_dear: Whether they did not fit into the rest of the study's budget.
    """

    draw: int
    settings: Settings
    refused: str
    is_too_dear: bool = False

    def __post_init__(self) -> None:
        _check(_are_counts(self.draw) and isinstance(self.refused, str), "draw or refused is none")
        _check(isinstance(self.is_too_dear, bool), "is_too_dear is not true or false")
        _check(isinstance(self.settings, dict), "settings is no object")


@dataclass(frozen=True)
class Report:
    """One epoch of one trial.

    Attributes:
        trial: The number of the trial, from 0.
        epoch: The number of epochs that the trial has finished, from 1.
        score: The score that ranks it; None if it was not finite.
        stop: The decision: whether the trial was stopped after this epoch.
        seconds: How long the epoch took, with the start of the trial before its first one.
    """

    trial: int
    epoch: int
    score: float | None
    stop: bool
    seconds: float = 0.0

    def __post_init__(self) -> None:
        _check(
            _are_counts(self.trial, self.epoch) and self.epoch > 0, "trial and epoch are not counts"
        )
        number = isinstance(self.score, int | float) and math.isfinite(self.score)
        _check(self.score is None or number, "score is not a finite number")
        _check(isinstance(self.stop, bool), "stop is not true or false")
        known = isinstance(self.seconds, int | float) and 0 <= self.seconds < math.inf
        _check(known, "seconds is no duration")


@dataclass(frozen=True)
class Handover:
    """A trial that has taken over the weights of another one.

    Attributes:
        trial: The number of the trial.
        epoch: The number of epochs that both have finished.
        donor: The number of the other one.
        settings: The settings with which the trial goes on.
        weights: The sha256 of the weights, as one safetensors file.
    """

    trial: int
    epoch: int
    donor: int
    settings: Settings
    weights: str

    def __post_init__(self) -> None:
        _check(_are_counts(self.trial, self.epoch, self.donor), "a number is no count")
        _check(isinstance(self.settings, dict), "settings is no object")
        _check(isinstance(self.weights, str), "weights is no text")


@dataclass(frozen=True)
class Generation:
    """All trials have waited for each other, and each handover of this epoch is done.

    Attributes:
        generation: The number of epochs that the trials have finished.
    """

    generation: int

    def __post_init__(self) -> None:
        _check(_are_counts(self.generation), "generation is no count")


@dataclass(frozen=True)
class Note:
    """Something that happened to a trial.

    Attributes:
        trial: The number of the trial.
        note: What happened.
    """

    trial: int
    note: str

    def __post_init__(self) -> None:
        _check(_are_counts(self.trial) and isinstance(self.note, str), "trial or note is none")


@dataclass(frozen=True)
class Failure:
    """A trial that ended with an error.

    Attributes:
        trial: The number of the trial, from 0.
        error: The text of the error.
        final: Whether it is not tried again when the study is resumed.
    """

    trial: int
    error: str
    final: bool = True

    def __post_init__(self) -> None:
        _check(
            _are_counts(self.trial) and isinstance(self.error, str),
            "trial is not a count, or error is not a text",
        )
        _check(isinstance(self.final, bool), "final is not true or false")


Entry = Begin | Refusal | Report | Handover | Generation | Note | Failure
_KINDS = {
    "refused": Refusal, "error": Failure, "note": Note, "donor": Handover,
    "generation": Generation, "draw": Begin,
}  # fmt: skip
"""The kind of an entry with a field that no other kind has, the first one found."""


def parse_entry(line: bytes) -> Entry:
    """Return the entry in a line.

    Raises:
        ValueError: The line is not an entry, or is cut short.
    """
    if not line.endswith(b"\n"):
        raise ValueError("it has no end")
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    kind: Any = next((kind for field, kind in _KINDS.items() if field in values), Report)
    try:
        entry: Entry = kind(**values)
    except TypeError:
        raise ValueError("it has other fields") from None
    return entry


def _check(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(fault)


def _are_counts(*values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
