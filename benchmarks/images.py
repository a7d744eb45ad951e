"""The images on which every implementation is measured."""

import torch

from perceiver_model.adapters.configs import ImageInput
from perceiver_model.families.classifier_config import ClassifierConfig


def raw_images(config: ClassifierConfig, batch_size: int, device: str) -> torch.Tensor:
    """Return random uint8 images `[batch, height, width, channels]`, the same for all."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, *image_shape(config))
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return images.to(device)


def image_shape(config: ClassifierConfig) -> tuple[int, int, int]:
    """Return the height, the width and the channels of the images."""
    image = config.input
    assert isinstance(image, ImageInput), "choose_peers refuses it"
    return image.height, image.width, image.channels


def standardised(raw: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
    """Return (raw / 255 - mean) / std, float32, with the channels last.

    Args:
        raw: The images `[batch, height, width, channels]`, uint8.
        config: The configuration, with the mean and the standard deviation.
    """
    image = config.input
    assert isinstance(image, ImageInput), "choose_peers refuses it"
    mean, std = (torch.tensor(values, device=raw.device) for values in (image.mean, image.std))
    return (raw.float() / 255 - mean) / std
