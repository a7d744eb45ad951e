"""Which fields of `training.augment` each modality takes, and the refusal of all others."""

from collections.abc import Mapping

from pipeline.config.objectives.base import ObjectiveConfig
from pipeline.config.training import AugmentConfig
from pipeline.inputs.modality import MIX_FIELDS, inputs_of
from pipeline.media.format import MediaFormat


def fields_of(media: MediaFormat) -> tuple[str, ...]:
    """Return the fields that change media of a format."""
    return inputs_of(media).augment_fields(media) + inputs_of(media).mix_fields(media)


def asked(augment: AugmentConfig, fields: tuple[str, ...] | None = None) -> list[str]:
    """Return the fields whose values change something, from these fields or from all."""
    none = AugmentConfig()
    names = fields if fields is not None else tuple(AugmentConfig.model_fields)
    return [name for name in names if getattr(augment, name) != getattr(none, name)]


def check_augment(augment: AugmentConfig, formats: Mapping[str, MediaFormat]) -> None:
    """Refuse a field that would change nothing, or a value that the data cannot take.

    Args:
        augment: The section `training.augment`.
        formats: The formats of the data, by modality.

    Raises:
        ValueError: A field changes none of the data, or has a value that they cannot take. The text
            names the field, and what each modality takes.
    """
    taken = {name: fields_of(media) for name, media in formats.items()}
    for field in asked(augment):
        if field == "views":
            continue  # of samples, whatever they hold
        if not any(field in fields for fields in taken.values()):
            found = "; ".join(_describe(formats[name], fields) for name, fields in taken.items())
            raise ValueError(f"training.augment.{field} changes none of the data: {found}")
    for media in formats.values():
        inputs_of(media).check_augment(augment, media)


def check_mixing(
    augment: AugmentConfig, formats: Mapping[str, MediaFormat], objective: ObjectiveConfig | None
) -> None:
    """Refuse to mix samples of several modalities, or for an objective that has no loss for it.

    Args:
        augment: The configuration of the augmentation.
        formats: The formats of the data, by modality.
        objective: The section `objective`; None if nothing is trained.

    Raises:
        ValueError: The message names the field.
    """
    for field in asked(augment, MIX_FIELDS):
        if len(formats) > 1:
            raise ValueError(
                f"training.augment.{field} mixes samples of one modality; data has "
                f"{', '.join(formats)}"
            )
        if objective is not None and not objective.mixes_samples:
            raise ValueError(
                f"training.augment.{field} mixes samples and their classes or labels, which "
                f"objective {objective.kind!r} cannot; leave it out"
            )


def _describe(media: MediaFormat, fields: tuple[str, ...]) -> str:
    stored = inputs_of(media).stored_as(media)
    return f"{media.modality}{stored} takes {', '.join(fields) or 'no augmentation'}"
