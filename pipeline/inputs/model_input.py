"""The model's input, as it follows from how the media are decoded."""

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
    """Return the model's input for media of a format.

    Args:
        media: The format. A `FittedTableFormat` gives an input with its statistics. Any other
            table gives an input with placeholder statistics of the right shape.
        pixel_mean: The mean of each channel of images and films.
        pixel_std: The standard deviation of each channel of images and films.

    Raises:
        ValueError: The mean and standard deviation have a different number of channels.
    """
    return inputs_of(media).input_config(media, pixel_mean=pixel_mean, pixel_std=pixel_std)


def model_adapter(media: MediaFormat, adapter: AdapterConfig) -> AdapterConfig:
    """Return the adapter that reads the stored media as `adapter` would read the raw media.

    Raises:
        ValueError: The shards hold features that differ from the adapter's.
    """
    return inputs_of(media).adapter(media, adapter)


def fitted_media(media: MediaFormat, made_with: Mapping[str, Any]) -> MediaFormat:
    """Add the statistics fitted on the training rows. Only tables have any.

    Args:
        media: The format.
        made_with: The configuration in the set's manifest.

    Returns:
        The format with its statistics; for other modalities the same format.

    Raises:
        ValueError: The configuration has no vocabulary for the table.
    """
    fitted: MediaFormat = modality_of(media).fitted(media, made_with)
    return fitted
