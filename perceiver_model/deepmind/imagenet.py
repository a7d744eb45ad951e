"""Perceiver IO's image classifiers: Fourier features, learned positions, convolutional stem.

DeepMind evaluates them on the central square of 224/256 of an image's shorter side, resized to 224
× 224 with bicubic interpolation, and standardised with ImageNet's mean and standard deviation. The
loaded configuration contains both. The models read `[batch, height, width, 3]`, uint8 or floating
point in [0, 1], and standardise the images themselves.

transformers differs from DeepMind in three points, and `Fidelity` chooses between them:

- Its MLPs use the exact GELU instead of the tanh approximation.
- With learned positions, its decoder adds the query to the result of the attention.
- In the convolutional stem, it pads 3 pixels on every side. DeepMind pads 2 before and 3 after an
  even number of pixels, so each window of transformers lies one pixel further up and left.
  transformers also does not pad before pooling: 224 × 224 pixels give 3,025 tokens instead of
  3,136.

transformers also drops attention weights in training, with a probability of 0.1 by default. The
models here never do, as DeepMind's do not.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

import torch

from perceiver_model.adapters.configs import ConvStemConfig, ImageInput, PixelsConfig
from perceiver_model.config import DecoderConfig, FourierConfig, LearnedPositions
from perceiver_model.deepmind.architecture import Architecture, explicit_positions
from perceiver_model.deepmind.layers import (
    DECODER,
    PREPROCESSOR,
    TensorMap,
    encoder_map,
    head_map,
    layer_map,
    tensor_map,
)
from perceiver_model.deepmind.settings import (
    Fidelity,
    label_settings,
    num_classes,
    read_encoder,
    read_gelu,
    read_precision,
    setting,
    write_encoder,
)
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig

IMAGE_SIZE = (224, 224)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _ImageClassifier(Architecture[ClassifierConfig]):
    """The common part of the image classifiers."""

    model = PerceiverClassifier
    irrelevant = frozenset({"input.mean", "input.std"})

    def write_settings(self, config: ClassifierConfig) -> dict[str, Any]:
        labels = label_settings(config.num_classes)
        return write_encoder(config.encoder, config.input_channels) | labels

    def tensors(self, config: ClassifierConfig) -> list[TensorMap]:
        return [*self._preprocessor_map(), *encoder_map(config.encoder), *head_map()]

    def recognises(self, names: Collection[str]) -> bool:
        own = {name for entry in self._preprocessor_map() for name in entry.theirs}
        theirs = {name for name in names if name.startswith(PREPROCESSOR)}
        return own == theirs and f"{DECODER}.final_layer.bias" in names

    def image_size(self, config: ClassifierConfig) -> tuple[int, int]:
        assert isinstance(config.input, ImageInput), "fits() was asked first"
        return config.input.height, config.input.width

    def explicit(self, config: ClassifierConfig) -> ClassifierConfig:
        positions = explicit_positions(config.positions, config.token_grid)
        return dataclasses.replace(super().explicit(config), positions=positions)

    def _preprocessor_map(self) -> list[TensorMap]:
        """Map the tensors before the encoder; constants have none."""
        return []


class FourierClassifier(_ImageClassifier):
    """Pixels with Fourier features: `PerceiverForImageClassificationFourier`."""

    name = "PerceiverForImageClassificationFourier"

    def fits(self, config: object) -> bool:
        return (
            _is_image_classifier(config)
            and isinstance(config.adapter, PixelsConfig)
            and isinstance(config.positions, FourierConfig)
        )

    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> ClassifierConfig:
        height, width = image_size or IMAGE_SIZE
        return ClassifierConfig(
            input=ImageInput(height=height, width=width, mean=MEAN, std=STD),
            adapter=PixelsConfig(),
            positions=FourierConfig(
                num_bands=64, max_resolution=(224, 224), precision=read_precision(fidelity)
            ),
            encoder=read_encoder(settings, fidelity),
            decoder=DecoderConfig(gelu=read_gelu(settings, fidelity)),
            num_classes=num_classes(settings, state_dict, f"{DECODER}.final_layer"),
        )


class LearnedClassifier(_ImageClassifier):
    """Projected pixels with learned positions: `PerceiverForImageClassificationLearned`."""

    name = "PerceiverForImageClassificationLearned"
    tolerable = frozenset({"decoder.query_residual"})

    def fits(self, config: object) -> bool:
        return (
            _is_image_classifier(config)
            and isinstance(config.adapter, PixelsConfig)
            and isinstance(config.positions, LearnedPositions)
        )

    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> ClassifierConfig:
        size = setting(settings, "image_size")
        if image_size not in (None, (size, size)):
            raise ValueError(
                f"image_size is {image_size}; the checkpoint has positions for ({size}, {size})"
            )
        return ClassifierConfig(
            input=ImageInput(height=size, width=size, mean=MEAN, std=STD),
            adapter=PixelsConfig(num_channels=256),
            positions=LearnedPositions(num_channels=256, projected_channels=256),
            encoder=read_encoder(settings, fidelity),
            decoder=DecoderConfig(
                query_residual=fidelity == "transformers", gelu=read_gelu(settings, fidelity)
            ),
            num_classes=num_classes(settings, state_dict, f"{DECODER}.final_layer"),
        )

    def write_settings(self, config: ClassifierConfig) -> dict[str, Any]:
        height, width = config.token_grid
        if height != width:
            raise ValueError(
                f"ImageInput.height = {height}, width = {width}: transformers has learned "
                "positions for square images only"
            )
        return super().write_settings(config) | {"image_size": height}

    def _preprocessor_map(self) -> list[TensorMap]:
        convolution = f"{PREPROCESSOR}.convnet_1x1"
        return [
            *tensor_map("adapter.project.weight", f"{convolution}.weight", shape=(256, 3, 1, 1)),
            *tensor_map("adapter.project.bias", f"{convolution}.bias"),
            *tensor_map(
                "positions.table", f"{PREPROCESSOR}.position_embeddings.position_embeddings"
            ),
            *layer_map("positions.project", f"{PREPROCESSOR}.positions_projection"),
        ]


class ConvClassifier(_ImageClassifier):
    """A convolutional stem: `PerceiverForImageClassificationConvProcessing`."""

    name = "PerceiverForImageClassificationConvProcessing"
    tolerable = frozenset({"adapter.padding"})

    def fits(self, config: object) -> bool:
        return _is_image_classifier(config) and isinstance(config.adapter, ConvStemConfig)

    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> ClassifierConfig:
        config = FourierClassifier().read_config(
            settings, state_dict, fidelity=fidelity, image_size=image_size
        )
        return dataclasses.replace(
            config,
            adapter=ConvStemConfig(padding="same" if fidelity == "deepmind" else "valid"),
            positions=FourierConfig(
                num_bands=64, max_resolution=(56, 56), precision=read_precision(fidelity)
            ),
        )

    def _preprocessor_map(self) -> list[TensorMap]:
        norm = f"{PREPROCESSOR}.convnet.batchnorm"
        return [
            *tensor_map("adapter.conv.weight", f"{PREPROCESSOR}.convnet.conv.weight"),
            *layer_map("adapter.norm", norm),
            *tensor_map("adapter.norm.running_mean", f"{norm}.running_mean"),
            *tensor_map("adapter.norm.running_var", f"{norm}.running_var"),
            *tensor_map("adapter.norm.num_batches_tracked", f"{norm}.num_batches_tracked"),
        ]


def _is_image_classifier(config: object) -> TypeGuard[ClassifierConfig]:
    return (
        isinstance(config, ClassifierConfig)
        and isinstance(config.input, ImageInput)
        and config.decoder is not None
    )
