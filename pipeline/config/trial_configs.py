"""The configurations of a study's trials."""

from typing import Any

from pipeline.config.conditions import Settings
from pipeline.config.load import with_values
from pipeline.config.sampler import SearchAlgorithm
from pipeline.config.search import SEARCHES
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config


def study_base(config: Config, study: StudyConfig) -> Config:
    """Return the configuration of every trial, with the study's workers and epochs."""
    values: dict[str, Any] = {"cluster.num_workers": study.num_workers}
    if study.epochs is not None:
        values["training.epochs"] = study.epochs
    return with_values(config, values)


def trial_config(base: Config, settings: Settings) -> Config:
    """Return the configuration of a trial.

    The search space was checked with the base. It is not checked again, since another value of it
    may not go with the trial's own ones.

    Raises:
        UserError: The values do not go together.
    """
    trial = with_values(base, {**settings, "study": None})
    return trial.model_copy(update={"study": base.study})


def draw_settings(study: StudyConfig, seed: int) -> list[Settings]:
    """Return the settings that are known before a study starts, by number.

    The first ones stay the same if `num_trials` grows. A sequential search has none.

    Args:
        study: The section `study` of the configuration.
        seed: The seed of the search.
    """
    search = SEARCHES[study.search]
    if not isinstance(search, SearchAlgorithm):
        return []
    return search.settings(study.space, study.trials, seed)[: study.trials]
