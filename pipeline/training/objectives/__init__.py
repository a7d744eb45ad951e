"""What a model is trained for: one file for each objective, and their table.

Adding one takes a file beside `classification.py` and a line in `OBJECTIVES`
(`docs/extending.md`). The package travels with every registered model, which answers by it.
"""

from typing import TYPE_CHECKING

from pipeline.training.objectives.base import Batch, Objective, Prediction
from pipeline.training.objectives.classification import Classification

if TYPE_CHECKING:
    from pipeline.config.tree import Config
    from shards.manifest import Manifest

OBJECTIVES: dict[str, type[Objective]] = {
    "classify": Classification,
}
"""By their names. The first one is meant where a card, a tag or a result names none."""

DEFAULT_OBJECTIVE = next(iter(OBJECTIVES))

__all__ = [
    "DEFAULT_OBJECTIVE",
    "OBJECTIVES",
    "Batch",
    "Objective",
    "Prediction",
    "name_field",
    "objective_class",
    "objective_for",
    "objective_of",
]


def objective_class(name: str | None) -> type[Objective]:
    """The objective of a name; of None, the first one.

    Raises:
        ValueError: there is none of that name.
    """
    name = DEFAULT_OBJECTIVE if name is None else name
    if name not in OBJECTIVES:
        raise ValueError(f"objective {str(name)[:200]!r} is none of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def name_field(objective: type[Objective]) -> dict[str, str]:
    """The field `objective` of a card or a result; the first objective's have none."""
    return {} if objective.name == DEFAULT_OBJECTIVE else {"objective": objective.name}


def objective_for(target: str) -> type[Objective] | None:
    """The first objective that is trained on targets of a kind; None where there is none."""
    return next((each for each in OBJECTIVES.values() if each.target == target), None)


def objective_of(config: "Config", manifest: "Manifest") -> Objective:
    """The objective of a training.

    Args:
        config: of the training; `objective_for` knows its kind of target.
        manifest: of the shard set.

    Raises:
        ValueError: the model cannot read the data.
    """
    found = objective_for(config.data.target.kind)
    assert found is not None
    return found.of(config, manifest)
