"""The images that everybody is measured on."""

import torch

from perceiver_model.adapters.configs import ImageInput
from perceiver_model.families.classifier_config import ClassifierConfig


def raw_images(config: ClassifierConfig, batch_size: int, device: str) -> torch.Tensor:
    """Random uint8 images `[batch, height, width, channels]`, the same for everybody."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, *image_shape(config))
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return images.to(device)


def image_shape(config: ClassifierConfig) -> tuple[int, int, int]:
    """Height, width and channels."""
    image = config.input
    assert isinstance(image, ImageInput), "choose_peers refuses it"
    return image.height, image.width, image.channels


def standardised(raw: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
    """Float32 (raw / 255 - mean) / std, channels last."""
    image = config.input
    assert isinstance(image, ImageInput), "choose_peers refuses it"
    mean, std = (torch.tensor(values, device=raw.device) for values in (image.mean, image.std))
    return (raw.float() / 255 - mean) / std
