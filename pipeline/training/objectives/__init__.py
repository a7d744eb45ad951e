"""What a model is trained for: one file for each objective, and a table of all.

To add an objective, add a file beside `classification.py` and a line to `OBJECTIVES`
(`docs/extending.md`). Every registered model carries this package and uses it to answer.
"""

from typing import TYPE_CHECKING

from pipeline.training.objectives.autoencoding import Autoencoding
from pipeline.training.objectives.autoregressive import Autoregression
from pipeline.training.objectives.base import Objective
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.masked_language import MaskedLanguage
from pipeline.training.objectives.multi_label import MultiLabel
from pipeline.training.objectives.prediction import Prediction
from pipeline.training.objectives.regression import Regression
from pipeline.training.objectives.segmentation import Segmentation
from pipeline.training.objectives.sequence import TokenSequence

if TYPE_CHECKING:
    from pipeline.config.tree import Config
    from shards import ShardSet

OBJECTIVES: dict[str, type[Objective]] = {
    "classify": Classification,
    "multi_label": MultiLabel,
    "regress": Regression,
    "segment": Segmentation,
    "sequence": TokenSequence,
    "masked_language": MaskedLanguage,
    "autoregressive": Autoregression,
    "autoencode": Autoencoding,
}
"""The objectives by name. If a card, tag or result names none, it means the first one."""

DEFAULT_OBJECTIVE = next(iter(OBJECTIVES))

__all__ = [
    "DEFAULT_OBJECTIVE",
    "OBJECTIVES",
    "Batch",
    "Objective",
    "Prediction",
    "name_field",
    "objective_class",
    "objective_of",
]


def objective_class(name: str | None) -> type[Objective]:
    """Return the objective with this name; the first one for None.

    Raises:
        ValueError: There is no objective with this name.
    """
    name = DEFAULT_OBJECTIVE if name is None else name
    if name not in OBJECTIVES:
        raise ValueError(f"objective {str(name)[:200]!r} is none of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def name_field(objective: type[Objective]) -> dict[str, str]:
    """Return the field `objective` for a card or a result; no field for the first objective."""
    return {} if objective.name == DEFAULT_OBJECTIVE else {"objective": objective.name}


def objective_of(config: "Config", shard_set: "ShardSet") -> Objective:
    """Return the objective of a training.

    Args:
        config: The configuration of the training. It must have an objective (`check_trainable`).
        shard_set: The shard set.

    Raises:
        ValueError: The model cannot read the data, or an option does not fit the set.
    """
    options = config.trained_for
    assert options is not None
    return objective_class(options.kind).of(config, shard_set)
