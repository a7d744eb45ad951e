"""The section `study`: which fields Ray Tune searches, and how."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import ConfigBase
from pipeline.config.budget import BudgetConfig, LimitsConfig
from pipeline.config.conditions import check_conditions
from pipeline.config.population import check_perturbed
from pipeline.config.sampler import SearchAlgorithm
from pipeline.config.schedulers import SCHEDULERS
from pipeline.config.search import SEARCHES
from pipeline.config.space import SpaceConfig

EPOCHS, SEED = "training.epochs", "seed"


class StudyConfig(ConfigBase):
    """A Ray Tune study over the fields named in `space`.

    Attributes:
        space: The values of each searched field, by the field's dotted path, such as
            `{choice: […]}` or `{loguniform: [low, high]}`. In a file, it may be the name
            `perceiver`: latents, their width, the depth and the bands, scaled to the
            configuration's own model and to the tokens of its data.
        search: The search algorithm. `grid` runs every combination of the values. `random` and
            `sobol` draw settings that depend on the space and `seed` alone. `tpe`, `cmaes` and
            `nsga2` (Optuna) learn from the trials before, in their order of arrival.
        num_trials: The number of settings of a search other than `grid`; null takes 8, of `tpe` and
            `cmaes` 32, of `nsga2` 48. If it grows, a finished study continues.
        objectives: What a study makes small beside the metric: `flops` of the forward pass, and the
            number of `parameters`. The answer is then a front of trials.
        epochs: The number of epochs of a trial; null takes `training.epochs`.
        seeds: The number of seeds from which each setting is trained: `seed` and the ones after it.
            A setting whose first training is stopped by the scheduler gets no others.
        confidence: The level of the confidence intervals of a setting's mean over its seeds.
        confirm: The number of other seeds from which the best setting is trained again at the end.
            Their interval is free of selection bias. If it grows, a finished study continues.
        num_workers: The number of training processes of each trial.
        max_concurrent_trials: The largest number of trials that run at the same time; null takes
            as many as the CPUs or GPUs hold.
        scheduler: What stops trials early: `asha`, `hyperband`, `median` or `none`. `pbt`
            (population-based training) stops none; its worst trials go on from the weights of the
            best ones, with other settings.
        grace_epochs, reduction_factor: ASHA and HyperBand compare trials after `grace_epochs`
            epochs, and again at each multiple by `reduction_factor`. Each time they stop all but
            the best `1 / reduction_factor` of them. The median rule stops none in `grace_epochs`.
            Epochs count as the samples that the configuration's own batch size trains on.
        perturb_epochs: The number of epochs after which the trials of `pbt` wait for each other.
        limits: What a trial may cost.
        budget: What all trials may cost together.
    """

    space: dict[str, SpaceConfig] = Field(min_length=1)
    search: str = "random"
    num_trials: int | None = Field(default=None, ge=1)
    objectives: tuple[Literal["flops", "parameters"], ...] = ()
    epochs: int | None = Field(default=None, ge=1)
    seeds: int = Field(default=1, ge=1, le=1000)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    confirm: int = Field(default=0, ge=0, le=1000)
    num_workers: int = Field(default=1, ge=1)
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    scheduler: str = "asha"
    grace_epochs: int = Field(default=1, ge=1)
    reduction_factor: int = Field(default=2, ge=2)
    perturb_epochs: int = Field(default=1, ge=1)
    limits: LimitsConfig = LimitsConfig()
    budget: BudgetConfig = BudgetConfig()

    @field_validator("search")
    @classmethod
    def _known_search(cls, search: str) -> str:
        if search not in SEARCHES:
            raise ValueError(f"is {search!r}; must be {', '.join(map(repr, SEARCHES))}")
        return search

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, scheduler: str) -> str:
        if scheduler not in SCHEDULERS:
            raise ValueError(f"is {scheduler!r}; must be {', '.join(map(repr, SCHEDULERS))}")
        return scheduler

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        check_conditions(self.space)
        SEARCHES[self.search].num_trials(self.space, self.num_trials)
        if SEED in self.space and (self.seeds > 1 or self.confirm):
            raise ValueError(
                "space.seed: seeds and confirm choose the seeds; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> Self:
        if not self.objectives:
            return self
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives is {list(self.objectives)}; name each one once")
        if not SEARCHES[self.search].takes_objectives:
            raise ValueError(
                f"objectives: search {self.search!r} has one objective; take 'nsga2' or 'tpe'"
            )
        if self.scheduler != "none":
            raise ValueError(
                f"objectives: scheduler {self.scheduler!r} ranks by the metric alone, and would "
                "stop small models that belong to the front; set scheduler to 'none'"
            )
        return self

    @model_validator(mode="after")
    def _population_fits(self) -> Self:
        if self.scheduler != "pbt":
            return self
        check_perturbed(self.space)
        if not isinstance(SEARCHES[self.search], SearchAlgorithm):
            raise ValueError(
                f"scheduler 'pbt' changes settings itself, and search {self.search!r} learns from "
                "settings that stay; take search 'random', 'sobol' or 'grid'"
            )
        if self.seeds > 1 or self.confirm:
            raise ValueError(
                "scheduler 'pbt' gives a trial several settings one after another, so no setting "
                "can be trained from other seeds; leave out seeds and confirm"
            )
        return self

    @property
    def trials(self) -> int:
        """The number of settings of the study."""
        return SEARCHES[self.search].num_trials(self.space, self.num_trials)
