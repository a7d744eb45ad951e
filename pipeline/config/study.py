"""The section `study`: which fields Ray Tune searches, and how."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import ConfigBase
from pipeline.config.search import SEARCHES
from pipeline.config.space import SpaceConfig


class StudyConfig(ConfigBase):
    """A Ray Tune study over the fields named in `space`.

    Attributes:
        space: The values of each searched field, by the field's dotted path: `{choice: […]}`,
            `{uniform: [low, high]}` or `{loguniform: [low, high]}`.
        search: The search algorithm. `grid` runs every combination of the choices; `random` draws
            `num_trials` trials, which depend on the space and `seed` alone.
        num_trials: The number of trials of a `random` search, by default 8. If it grows, a
            finished study continues.
        epochs: The number of epochs of a trial; null takes `training.epochs`.
        num_workers: The number of training processes of each trial.
        max_concurrent_trials: The largest number of trials that run at the same time; null takes
            as many as the CPUs or GPUs hold.
        grace_epochs, reduction_factor: ASHA compares trials after `grace_epochs` epochs, and
            again at each multiple by `reduction_factor`. Each time it stops all but the best
            `1 / reduction_factor` of them.
    """

    space: dict[str, SpaceConfig] = Field(min_length=1)
    search: str = "random"
    num_trials: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    num_workers: int = Field(default=1, ge=1)
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    grace_epochs: int = Field(default=1, ge=1)
    reduction_factor: int = Field(default=2, ge=2)

    @field_validator("search")
    @classmethod
    def _known_search(cls, search: str) -> str:
        if search not in SEARCHES:
            raise ValueError(f"is {search!r}; must be {' or '.join(map(repr, SEARCHES))}")
        return search

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        SEARCHES[self.search].num_trials(self.space, self.num_trials)
        return self

    @property
    def trials(self) -> int:
        """The number of trials of the study."""
        return SEARCHES[self.search].num_trials(self.space, self.num_trials)
