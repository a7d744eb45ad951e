"""The section `study`: what Ray Tune searches, and how."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import ConfigBase

DEFAULT_TRIALS = 8


class SpaceConfig(ConfigBase):
    """The values a searched field may take: exactly one of the three.

    Attributes:
        choice: one of a list.
        uniform: a number between two bounds, drawn uniformly.
        loguniform: a number between two positive bounds, its logarithm drawn uniformly.
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
        """Low and high of `uniform` or `loguniform`."""
        bounds = self.uniform or self.loguniform
        assert bounds is not None
        return bounds


class StudyConfig(ConfigBase):
    """A Ray Tune study over the fields named in `space`.

    Attributes:
        space: dotted field of this configuration → `{choice: […]}`, `{uniform: [low, high]}`
            or `{loguniform: [low, high]}`.
        search: `grid` runs every combination of the choices; `random` draws `num_trials`,
            which depend on `seed` alone.
        num_trials: trials of a `random` search, by default 8. A study that is done goes on when
            this grows.
        epochs: epochs of a trial; null takes `training.epochs`.
        num_workers: training processes of each trial.
        max_concurrent_trials: trials at once; null takes as many as the CPUs or GPUs hold.
        grace_epochs, reduction_factor: ASHA compares trials after `grace_epochs` epochs, and
            again at each multiple by `reduction_factor`, and stops all but the best
            `1 / reduction_factor`.
    """

    space: dict[str, SpaceConfig] = Field(min_length=1)
    search: Literal["grid", "random"] = "random"
    num_trials: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    num_workers: int = Field(default=1, ge=1)
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    grace_epochs: int = Field(default=1, ge=1)
    reduction_factor: int = Field(default=2, ge=2)

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        for path, space in self.space.items():
            if self.search == "grid" and space.choice is None:
                raise ValueError(f"space.{path}: search 'grid' needs {{choice: […]}}")
        # Before num_trials could be null, its default was written to the runs of grid studies.
        if self.search == "grid" and self.num_trials not in (None, DEFAULT_TRIALS, self.trials):
            raise ValueError(
                f"num_trials is {self.num_trials}, but search 'grid' runs every combination of the "
                f"choices, which are {self.trials}; leave num_trials out"
            )
        return self

    @property
    def trials(self) -> int:
        """How many trials the study has."""
        if self.search == "grid":
            return math.prod(len(space.choice or ()) for space in self.space.values())
        return DEFAULT_TRIALS if self.num_trials is None else self.num_trials
