"""What the model reads, as it follows from how media are decoded."""

from collections.abc import Mapping
from typing import Any

from perceiver_model.adapters.configs import MediaInput
from perceiver_model.families.classifier_config import AdapterConfig
from pipeline.inputs.modality import inputs_of
from pipeline.media.format import MediaFormat
from pipeline.media.registered import modality_of


def model_input(
    media: MediaFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
) -> MediaInput:
    """The model's input for media of a format.

    Args:
        media: of a `FittedTableFormat`, the input has the statistics; of any
            other table, ones of the right shape.
        pixel_mean, pixel_std: standardisation of images and films.

    Raises:
        ValueError: the standardisation has another number of channels.
    """
    return inputs_of(media).input_config(media, pixel_mean=pixel_mean, pixel_std=pixel_std)


def model_adapter(media: MediaFormat, adapter: AdapterConfig) -> AdapterConfig:
    """The adapter that reads the stored media as `adapter` would read them raw.

    Raises:
        ValueError: shards hold other features than the adapter's.
    """
    return inputs_of(media).adapter(media, adapter)


def fitted_media(media: MediaFormat, made_with: Mapping[str, Any]) -> MediaFormat:
    """The format with what a shard set's training rows told; only of tables is that anything.

    Args:
        made_with: the configuration in the set's manifest.

    Raises:
        ValueError: it has no vocabulary for the table.
    """
    fitted: MediaFormat = modality_of(media).fitted(media, made_with)
    return fitted
