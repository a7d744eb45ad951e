"""What the model reads, as it follows from how media are decoded."""

from collections.abc import Mapping
from typing import Any

from perceiver_model.adapters.configs import (
    AudioInput,
    FeatureMapInput,
    ImageInput,
    Mel,
    Pixels,
    Points,
    PointsInput,
    TableInput,
    TextInput,
    VideoInput,
)
from perceiver_model.families.classifier_config import AdapterConfig
from pipeline.media import (
    AudioFormat,
    FittedTableFormat,
    ImageFormat,
    MediaFormat,
    PointsFormat,
    TableFormat,
    TableVocabulary,
    TextFormat,
    VideoFormat,
)

VOCABULARY = "vocabulary"
"""Key of a manifest's configuration that holds a table's vocabulary."""

SingleInput = (
    AudioInput | FeatureMapInput | ImageInput | PointsInput | TableInput | TextInput | VideoInput
)


def model_input(
    media: MediaFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
) -> SingleInput:
    """The model's input for media of a format.

    Log-mel frames are read as a feature map of one column, whose channels are the bands. Points
    that are stored in the unit cube are read as they are, so that features are of the stored
    coordinates.

    Args:
        media: of a `FittedTableFormat`, the input has the statistics; of any
            other table, ones of the right shape.
        pixel_mean, pixel_std: standardisation of images and films.

    Raises:
        ValueError: the standardisation has another number of channels.
    """
    match media:
        case ImageFormat():
            return ImageInput(
                height=media.height,
                width=media.width,
                channels=media.channels,
                mean=pixel_mean,
                std=pixel_std,
            )
        case VideoFormat():
            return VideoInput(
                num_frames=media.num_frames,
                height=media.height,
                width=media.width,
                channels=media.channels,
                mean=pixel_mean,
                std=pixel_std,
            )
        case PointsFormat():
            return PointsInput(num_points=media.num_points, unit_cube=not media.unit_cube)
        case TextFormat():
            return TextInput(max_length=media.max_length)
        case TableFormat():
            return _table_input(media)
        case AudioFormat() if media.mel is not None:
            frames, num_mels = media.shape
            return FeatureMapInput(height=frames, width=1, channels=num_mels)
        case AudioFormat():
            return AudioInput(sample_rate=media.sample_rate, num_samples=media.num_samples)


def model_adapter(media: MediaFormat, adapter: AdapterConfig) -> AdapterConfig:
    """The adapter that reads the stored media as `adapter` would read them raw.

    Raises:
        ValueError: shards hold other features than the adapter's.
    """
    if isinstance(media, PointsFormat) and media.fourier is not None:
        if isinstance(adapter, Points):
            _check_points(adapter, media)
        return adapter
    if not isinstance(media, AudioFormat) or media.mel is None:
        return adapter
    if not isinstance(adapter, Mel) or adapter.tokens != "frames":
        raise ValueError(
            "data.audio.mel stores log-mel frames, which adapter mel with tokens=frames reads; "
            "give that adapter, or leave data.audio.mel out"
        )
    _check_equal(adapter, media.mel, "data.audio.mel", "num_mels window hop")
    return Pixels()


def _check_points(adapter: Points, media: PointsFormat) -> None:
    """Refuse an adapter of other frequencies than the stored features'."""
    assert media.fourier is not None
    _check_equal(adapter, media.fourier, "data.points.fourier", "num_bands")
    read = adapter.resolution(PointsInput(num_points=media.num_points))
    stored = media.fourier.resolution(media.num_points)
    if read != stored:
        raise ValueError(
            f"adapter.max_resolution is {read:g}, but data.points.fourier.max_resolution is "
            f"{stored:g}; make them equal"
        )


def _check_equal(adapter: AdapterConfig, stored: Any, section: str, fields: str) -> None:
    for field in fields.split():
        if getattr(stored, field) != getattr(adapter, field):
            raise ValueError(
                f"adapter.{field} is {getattr(adapter, field)}, but {section}.{field} is "
                f"{getattr(stored, field)}; make them equal"
            )


def fitted_media(media: MediaFormat, made_with: Mapping[str, Any]) -> MediaFormat:
    """The format with what a shard set's training rows told; only of tables is that anything.

    Args:
        made_with: the configuration in the set's manifest.

    Raises:
        ValueError: it has no vocabulary for the table.
    """
    if not isinstance(media, TableFormat):
        return media
    if made_with.get(VOCABULARY) is None:
        raise ValueError("the shard set has no vocabulary of its table; preprocess it again")
    return FittedTableFormat.of(media, TableVocabulary.from_dict(made_with[VOCABULARY]))


def _table_input(media: TableFormat) -> TableInput:
    if not isinstance(media, FittedTableFormat):
        return TableInput(
            num_numeric=len(media.numeric), num_categories=(1,) * len(media.categorical)
        )
    known = [media.vocabulary.categories[column] for column in media.categorical]
    return TableInput(
        num_numeric=len(media.numeric),
        mean=media.vocabulary.mean or (0.0,),
        std=media.vocabulary.std or (1.0,),
        # A column without a single value has an embedding for unknown ones, and one unused.
        num_categories=tuple(max(1, len(names)) for names in known),
    )
