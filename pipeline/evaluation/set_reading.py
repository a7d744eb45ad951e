"""How a model reads a set: its own, or another one whose formats and targets fit."""

from pipeline.evaluation.class_numbers import Renumbering
from pipeline.inputs.batches import has_array
from pipeline.registry.other_sets import stored_media
from pipeline.registry.reading import Reading
from pipeline.registry.served.card import ModelCard
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
    stored = card.media if is_own else stored_media(card, shard_set)
    reading = Reading(stored, card.media, verify_samples, skip_corrupt, has_array(objective.target))
    classes = shard_set.manifest.classes
    return reading, Renumbering.between(objective.target, classes, objective.class_names, where)
