"""Which trainings can read recordings as streams (`training.stream`)."""

from collections.abc import Mapping

from pipeline.config.objectives import ObjectiveConfig
from pipeline.config.training import TrainingConfig
from pipeline.media.format import MediaFormat
from pipeline.media.registered import modality_of

CUTTING = "data.audio.clips: all, data.text.cut: all or data.video.clips: all"


def check_stream(
    training: TrainingConfig,
    formats: Mapping[str, MediaFormat],
    objective: ObjectiveConfig | None,
) -> None:
    """Refuse a configuration with `training.stream` that cannot be trained.

    Args:
        training: The section `training`.
        formats: The formats of the data, by modality.
        objective: The section `objective`, given or implied.

    Raises:
        ValueError: The text names the fields that do not fit.
    """
    if training.stream is None:
        return
    if objective is None or not objective.reads_streams:
        kind = objective.kind if objective else None
        raise ValueError(
            f"training.stream is for the objectives 'classify' and 'regress'; objective.kind is "
            f"{kind!r}"
        )
    if len(formats) > 1:
        raise ValueError(f"training.stream reads one modality; data has {', '.join(formats)}")
    for name, fmt in formats.items():
        if not modality_of(fmt).cuts(fmt):
            raise ValueError(
                f"training.stream reads recordings that are cut into parts, and data.{name} does "
                f"not cut its files; give {CUTTING}"
            )
    if training.augment.mixup or training.augment.cutmix:
        raise ValueError(
            "training.augment.mixup and cutmix blend samples of two recordings, which "
            "training.stream reads apart; leave them out"
        )
    if training.augment.views > 1:
        raise ValueError(
            "training.augment.views repeats samples, and training.stream reads each part once; "
            "leave one of them out"
        )
    if training.canonical_nodes > 1:
        raise ValueError(
            f"training.canonical_nodes is {training.canonical_nodes}, and training.stream reads "
            "each recording in its own row; set canonical_nodes to 1"
        )
    if training.balance_classes:
        raise ValueError(
            "training.balance_classes draws samples several times, and training.stream reads each "
            "part once; leave one of them out (objective.class_weights weighs classes instead)"
        )
    if training.compile:
        raise ValueError("training.compile does not take training.stream; leave one of them out")
