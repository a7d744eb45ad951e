"""What is known of each of transformers' Perceiver classes: an `Architecture`."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig
from perceiver_model.config_checks import flatten, write_config
from perceiver_model.deepmind.layers import TensorMap
from perceiver_model.deepmind.settings import Fidelity, explicit_widths

Config = TypeVar("Config")


class Architecture(ABC, Generic[Config]):
    """One of transformers' Perceiver classes, and the model of ours that computes the same.

    Attributes:
        name: of the class in transformers.
        model: our class, which a configuration builds.
        tolerable: fields of our configuration that change what is computed but no tensor's shape,
            such as "adapter.padding"; weights that were trained with another value than
            transformers' may be exported on request.
        irrelevant: fields that change nothing of what is computed from a tensor that already went
            through preprocessing.
    """

    name: ClassVar[str]
    model: ClassVar[type[nn.Module]]
    tolerable: ClassVar[frozenset[str]] = frozenset()
    irrelevant: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def recognises(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are a checkpoint of this class."""

    @abstractmethod
    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> Config:
        """Our configuration of a checkpoint; raises ValueError for settings that we don't have.

        Args:
            state_dict: the checkpoint's tensors; empty if there are only settings.
            image_size: (height, width) to read, or None for what the weights were trained on.
        """

    @abstractmethod
    def write_settings(self, config: Config) -> dict[str, Any]:
        """The settings of config.json; raises ValueError for what transformers doesn't have."""

    @abstractmethod
    def tensors(self, config: Config) -> list[TensorMap]:
        """All of its tensors."""

    @abstractmethod
    def fits(self, config: object) -> bool:
        """Whether a configuration of ours is of this class, but for details."""

    def check_written(
        self, config: Any, settings: Mapping[str, Any], *, allow_differences: bool
    ) -> None:
        """Raises ValueError unless the settings, read back, are this configuration again.

        Args:
            allow_differences: in all but the tolerable fields.
        """
        read = self.read_config(
            settings, {}, fidelity="transformers", image_size=self.image_size(config)
        )
        ours, theirs = (flatten(write_config(self.explicit(tree))) for tree in (config, read))
        fields = {
            field
            for field in {*ours, *theirs} - self.irrelevant
            if ours.get(field) != theirs.get(field) and not field.endswith("positions.precision")
        }
        refused = sorted(fields - self.tolerable if allow_differences else fields)
        if refused:
            reasons = (
                f"{field} = {ours.get(field)!r}, not {theirs.get(field)!r}" for field in refused
            )
            hint = "; allow_differences=True writes it nevertheless"
            raise ValueError(
                f"transformers' {self.name} is another model: {', '.join(reasons)}"
                f"{hint if fields <= self.tolerable else ''}"
            )

    def image_size(self, config: Any) -> tuple[int, int] | None:
        """(height, width) of the images that a configuration reads, if it does."""
        return None

    def explicit(self, config: Any) -> Any:
        """The configuration with fields made equal that say the same by another value, or nothing.

        Two configurations of one function of the same tensors become equal.
        """
        return dataclasses.replace(
            config,
            encoder=_explicit_encoder(config.encoder, config.input_channels),
            decoder=_explicit_decoder(config.decoder, config.encoder.latent_dim),
        )


def explicit_positions(positions: Any, grid: tuple[int, ...]) -> Any:
    """Fourier features with their resolution, which the grid's shape is the default of."""
    if not isinstance(positions, FourierConfig) or positions.max_resolution is not None:
        return positions
    return dataclasses.replace(positions, max_resolution=grid)


def _explicit_encoder(encoder: EncoderConfig, input_channels: int) -> EncoderConfig:
    return dataclasses.replace(
        explicit_widths(encoder, input_channels),
        share_cross_attends="all",
        share_self_attends=True,
        cross_attend_layout="first",
        dropout=0.0,
        latent_init_std=1.0,
    )


def _explicit_decoder(decoder: DecoderConfig, latent_dim: int) -> DecoderConfig:
    qk_channels = decoder.qk_channels or latent_dim
    return dataclasses.replace(
        decoder,
        qk_channels=qk_channels,
        value_channels=decoder.value_channels or qk_channels,
        dropout=0.0,
    )
