"""Sets that a model was not trained on: whether it can read them, and how they are stored."""

from typing import Any

from pipeline.errors import UserError
from pipeline.inputs.model_input import fitted_media
from pipeline.media.format import Media
from pipeline.preprocess.identity import data_config
from pipeline.registry.reading import other_input
from pipeline.registry.served.card import ModelCard
from pipeline.training.objectives import Objective
from pipeline.training.objectives.regression import Regression, names_of_values
from shards import ShardSet


def stored_media(card: ModelCard, shard_set: ShardSet) -> Media:
    """Return the formats of a set's samples, which the model must be able to read.

    Args:
        card: The model's card.
        shard_set: The set.

    Raises:
        UserError: The set's formats or targets do not fit the model.
    """
    where, made_with = str(shard_set.location), shard_set.manifest.config
    data = _data_of(shard_set)
    formats = {name: fitted_media(fmt, made_with) for name, fmt in data.formats.items()}
    stored: Media = formats if len(formats) > 1 else next(iter(formats.values()))
    if other := other_input(stored, card.media):
        raise UserError(f"{where}: holds other input than the model takes ({other})")
    _check_target(card.objective, data.target, where)
    return stored


def _check_target(objective: Objective, target: Any, where: str) -> None:
    if objective.target not in ("none", target.kind):
        raise UserError(
            f"{where}: has targets of the kind {target.kind!r}, and the model is for "
            f"{objective.target!r}"
        )
    if isinstance(objective, Regression) and names_of_values(target) != objective.names:
        raise UserError(
            f"{where}: holds the numbers {', '.join(names_of_values(target))}, and the model "
            f"predicts {', '.join(objective.names)}"
        )


def _data_of(shard_set: ShardSet) -> Any:
    return data_config(shard_set.manifest, {"train": str(shard_set.location)}, {})
