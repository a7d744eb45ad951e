"""The works by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.works.attention import train_and_look
from pipeline.studies.works.features import fit_linear, train_on_maps
from pipeline.studies.works.ladder import measure_ladder
from pipeline.studies.works.modalities import train_modalities
from pipeline.studies.works.recall import train_recall


@dataclass(frozen=True)
class Work:
    """What an arm does.

    Attributes:
        run: Returns the metrics of an arm by name, from its configuration, its options and a
            console. A curve is a mapping from numbers to values, where None was not measured.
            `also` has the results of further labels, `ends` a text on why curves end, and
            `pictures` a list of `file`, `name` and `caption`.
        has_run: Whether it trains through the pipeline, so that the result has the `run_id` of the
            training's MLflow run.
    """

    run: Callable[[Config, Mapping[str, Any], Console], dict[str, Any]]
    has_run: bool = False


WORKS: dict[str, Work] = {
    "attention": Work(train_and_look, has_run=True),
    "features": Work(train_on_maps, has_run=True),
    "ladder": Work(measure_ladder),
    "linear": Work(fit_linear),
    "modalities": Work(train_modalities, has_run=True),
    "recall": Work(train_recall),
}
