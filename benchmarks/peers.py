"""Our model and the peers' models of a configuration, and the parts that are measured.

Every implementation builds a classifier and its first cross-attend alone. All get the same images,
each in the form that it reads.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.images import image_shape, standardised
from benchmarks.variants import (
    self_attends_per_cross_attend,
    transformers_class,
)
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import FourierConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.flops import forward_flops
from perceiver_model.layer_flops import cross_attend_flops
from perceiver_model.positions import build_positions


class CrossAttend(nn.Module, ABC):
    """The first cross-attend of an implementation: its latents read the tokens of a batch."""

    cross_attend: nn.Module

    @abstractmethod
    def tokens(self, images: torch.Tensor) -> Any:
        """Return the tokens of images in the implementation's form."""

    @abstractmethod
    def forward(self, tokens: Any) -> torch.Tensor:
        """Return latents `[batch, num_latents, latent_dim]` that have read the tokens."""


class Implementation(ABC):
    """One implementation of the Perceiver."""

    name: ClassVar[str]

    @abstractmethod
    def classifier(self, config: ClassifierConfig) -> nn.Module:
        """Build the model. It turns the result of `images` into logits `[batch, num_classes]`."""

    @abstractmethod
    def images(self, raw: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
        """Convert raw images, uint8 `[batch, height, width, channels]`, to the model's form."""

    @abstractmethod
    def cross_attend(self, config: ClassifierConfig) -> CrossAttend:
        """Build the first cross-attend alone."""

    def flops(self, config: ClassifierConfig) -> int:
        """Return the FLOPs of one image's forward pass, counted for the plain algorithm."""
        return forward_flops(config)

    def cross_attend_flops(self, config: ClassifierConfig) -> int:
        """Return the FLOPs of the first cross-attend alone."""
        encoder = config.encoder
        return cross_attend_flops(
            queries=encoder.num_latents,
            query_channels=encoder.latent_dim,
            tokens=math.prod(config.token_grid),
            input_channels=config.input_channels,
            qk_channels=encoder.cross_channels,
            value_channels=encoder.cross_value_channels,
            widening=encoder.cross_widening,
        )


class Ours(Implementation):
    """`perceiver_model`. It standardises the raw images itself in every step."""

    name = "ours"

    def classifier(self, config: ClassifierConfig) -> nn.Module:
        return PerceiverClassifier(config)

    def images(self, raw: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
        return raw

    def cross_attend(self, config: ClassifierConfig) -> CrossAttend:
        return OurCrossAttend(config)


class OurCrossAttend(CrossAttend):
    """Our cross-attend: the batch shares the latents, and positions are separate from content."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        model = PerceiverClassifier(_shallow(config))
        self.adapter, self.positions = model.adapter, model.positions
        self.latents = model.encoder.latents
        self.cross_attend = model.encoder.cross_attends[0]

    def tokens(self, images: torch.Tensor) -> InputArray:
        content, mask = self.adapter(images, None)
        return InputArray(content, self.positions(), mask)

    def forward(self, tokens: InputArray) -> torch.Tensor:
        latents, _ = self.cross_attend(self.latents.unsqueeze(0), tokens)
        return latents


class Transformers(Implementation):
    """Hugging Face transformers' port of DeepMind's Perceiver IO, without its dropout."""

    name = "transformers"

    def classifier(self, config: ClassifierConfig) -> nn.Module:
        return _Logits(transformers_model(config))

    def images(self, raw: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
        return standardised(raw, config).permute(0, 3, 1, 2).contiguous()

    def cross_attend(self, config: ClassifierConfig) -> CrossAttend:
        return TransformersCrossAttend(config)


class _Logits(nn.Module):
    """A transformers model that returns only its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(inputs=images).logits


class TransformersCrossAttend(CrossAttend):
    """The preprocessor's dense [x | p], and the encoder's cross-attention layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        perceiver: Any = transformers_model(_shallow(config)).perceiver
        self.preprocessor = perceiver.input_preprocessor
        self.embeddings = perceiver.embeddings
        self.cross_attend = perceiver.encoder.cross_attention

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.preprocessor(images)[0]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.cross_attend(self.embeddings(batch_size=tokens.shape[0]), inputs=tokens)[0]


def transformers_model(config: ClassifierConfig) -> Any:
    """Build the transformers model of a configuration, with its own initial weights."""
    import transformers

    name = transformers_class(config)
    assert name is not None, "choose_peers refuses it"
    encoder = config.encoder
    settings: dict[str, Any] = {
        "num_latents": encoder.num_latents,
        "d_latents": encoder.latent_dim,
        "num_blocks": encoder.num_blocks,
        "num_self_attends_per_block": encoder.num_self_attends,
        "num_self_attention_heads": encoder.num_self_heads,
        "num_cross_attention_heads": encoder.num_cross_heads,
        "qk_channels": encoder.cross_channels,
        "v_channels": encoder.cross_value_channels,
        "cross_attention_widening_factor": encoder.cross_widening,
        "self_attention_widening_factor": encoder.self_widening,
        "attention_probs_dropout_prob": 0.0,
        "image_size": image_shape(config)[0],
        "num_labels": config.num_classes,
    }
    return getattr(transformers, name)(transformers.PerceiverConfig(**settings))


def carry_over(model: Any, config: ClassifierConfig) -> PerceiverClassifier:
    """Build our model of the configuration, with the weights of the transformers model."""
    from perceiver_model.deepmind import from_transformers_state

    carried = from_transformers_state(
        model.state_dict(),
        model.config.to_dict() | {"architectures": [transformers_class(config)]},
        fidelity="transformers",
        image_size=image_shape(config)[:2],
    )
    ours = PerceiverClassifier(config)
    ours.load_state_dict(carried.state_dict())
    return ours


class Lucidrains(Implementation):
    """perceiver-pytorch's Perceiver with its own widths: gated MLPs that are 4 times as wide."""

    name = "lucidrains"

    def classifier(self, config: ClassifierConfig) -> nn.Module:
        from perceiver_pytorch import Perceiver

        encoder, positions = config.encoder, config.positions
        assert isinstance(positions, FourierConfig), "choose_peers refuses it"
        return Perceiver(
            num_freq_bands=positions.num_bands,
            max_freq=config.max_resolution[0],
            depth=encoder.num_cross_attends,
            input_channels=image_shape(config)[-1],
            input_axis=2,
            num_latents=encoder.num_latents,
            latent_dim=encoder.latent_dim,
            cross_heads=encoder.num_cross_heads,
            cross_dim_head=CROSS_HEAD_WIDTH,
            latent_heads=encoder.num_self_heads,
            latent_dim_head=encoder.latent_dim // encoder.num_self_heads,
            num_classes=config.num_classes,
            self_per_cross_attn=self_attends_per_cross_attend(encoder),
            weight_tie_layers=encoder.share_self_attends,
            fourier_encode_data=True,
        )

    def images(self, raw: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
        return standardised(raw, config)

    def cross_attend(self, config: ClassifierConfig) -> CrossAttend:
        return LucidrainsCrossAttend(config)

    def flops(self, config: ClassifierConfig) -> int:
        """Return the FLOPs, counted in a forward pass on the meta device."""
        with torch.device("meta"):
            model = self.classifier(config)
            images = torch.empty(1, *image_shape(config))
        return _counted(model, images)

    def cross_attend_flops(self, config: ClassifierConfig) -> int:
        with torch.device("meta"):
            module = LucidrainsCrossAttend(config)
            tokens = torch.empty(1, math.prod(config.token_grid), config.input_channels)
        return _counted(module, tokens)


CROSS_HEAD_WIDTH = 64
"""The width of a cross-attend's head in perceiver-pytorch, whatever the width of the tokens."""


class LucidrainsCrossAttend(CrossAttend):
    """Its normalised attention with the residual connection, without the MLP after it."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        from perceiver_pytorch.perceiver_pytorch import Attention, PreNorm

        encoder, channels = config.encoder, config.input_channels
        self.positions = build_positions(config.positions, config.token_grid, config.max_resolution)
        self.latents = nn.Parameter(torch.randn(encoder.num_latents, encoder.latent_dim))
        attention = Attention(
            encoder.latent_dim, channels, heads=encoder.num_cross_heads, dim_head=CROSS_HEAD_WIDTH
        )
        self.cross_attend = PreNorm(encoder.latent_dim, attention, context_dim=channels)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        # These are our tokens. Its own have the same channels in another order.
        return InputArray(images.flatten(1, 2), self.positions()).dense()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        return self.cross_attend(latents, context=tokens) + latents


IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation for implementation in (Ours(), Transformers(), Lucidrains())
}


def _shallow(config: ClassifierConfig) -> ClassifierConfig:
    """Return the same configuration up to the first cross-attend, and little after it."""
    encoder = dataclasses.replace(
        config.encoder, num_blocks=1, num_cross_attends=1, num_self_attends=1
    )
    return dataclasses.replace(config, encoder=encoder, num_classes=1)


def _counted(module: nn.Module, inputs: torch.Tensor) -> int:
    module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        module(inputs)
    return counter.get_total_flops()
