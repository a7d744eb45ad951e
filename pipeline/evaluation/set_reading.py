"""How a model reads a set: its own, or another one whose formats and targets fit."""

from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.class_numbers import Renumbering
from pipeline.inputs.batches import has_array
from pipeline.inputs.model_input import fitted_media
from pipeline.media.format import Media
from pipeline.preprocess.identity import data_config
from pipeline.registry.reading import Reading, other_input
from pipeline.registry.served.card import ModelCard
from pipeline.training.objectives import Objective
from pipeline.training.objectives.regression import Regression, names_of_values
from shards import ShardSet


def reading_of(
    card: ModelCard, shard_set: ShardSet, *, is_own: bool, verify_samples: bool, skip_corrupt: bool
) -> tuple[Reading, Renumbering]:
    """Return how a model reads a set, and how the set's classes become those of the model.

    Args:
        card: The model's card.
        shard_set: The set.
        is_own: Whether the model was trained on this very set.
        verify_samples: As in `Reading`.
        skip_corrupt: As in `Reading`.

    Raises:
        UserError: The set's formats, targets or classes do not fit the model.
    """
    objective, where = card.objective, str(shard_set.location)
    stored = card.media if is_own else _stored_media(shard_set)
    if not is_own:
        if other := other_input(stored, card.media):
            raise UserError(f"{where}: holds other input than the model takes ({other})")
        _check_target(objective, shard_set, where)
    reading = Reading(stored, card.media, verify_samples, skip_corrupt, has_array(objective.target))
    classes = shard_set.manifest.classes
    return reading, Renumbering.between(objective.target, classes, objective.class_names, where)


def _stored_media(shard_set: ShardSet) -> Media:
    made_with = shard_set.manifest.config
    formats = {
        name: fitted_media(fmt, made_with) for name, fmt in _data_of(shard_set).formats.items()
    }
    return formats if len(formats) > 1 else next(iter(formats.values()))


def _check_target(objective: Objective, shard_set: ShardSet, where: str) -> None:
    target = _data_of(shard_set).target
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
