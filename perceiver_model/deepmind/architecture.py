"""The description of one of transformers' Perceiver classes: an `Architecture`."""

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
    """One of transformers' Perceiver classes, and our own model that computes the same.

    Attributes:
        name: The name of the class in transformers.
        model: Our own class, which is built from a configuration.
        tolerable: The fields of our configuration that change the result but no tensor's shape,
            such as "adapter.padding". Weights that were trained with another value than
            transformers' can be exported on request.
        irrelevant: The fields that do not change the result for a tensor that is already
            preprocessed.
    """

    name: ClassVar[str]
    model: ClassVar[type[nn.Module]]
    tolerable: ClassVar[frozenset[str]] = frozenset()
    irrelevant: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def recognises(self, names: Collection[str]) -> bool:
        """Return whether tensors with these names are a checkpoint of this class."""

    @abstractmethod
    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> Config:
        """Return our configuration of a checkpoint.

        Args:
            settings: The settings in config.json.
            state_dict: The tensors of the checkpoint. It is empty if there are only settings.
            fidelity: The function that the model should compute, see `Fidelity`.
            image_size: The (height, width) to read. None means the size that the weights were
                trained on.

        Raises:
            ValueError: If our models do not support a setting.
        """

    @abstractmethod
    def write_settings(self, config: Config) -> dict[str, Any]:
        """Return the settings of config.json.

        Raises:
            ValueError: If transformers does not support the configuration.
        """

    @abstractmethod
    def tensors(self, config: Config) -> list[TensorMap]:
        """Return the maps of all tensors."""

    @abstractmethod
    def fits(self, config: object) -> bool:
        """Return whether one of our configurations is of this class, apart from details."""

    def check_written(
        self, config: Any, settings: Mapping[str, Any], *, allow_differences: bool
    ) -> None:
        """Check that the settings give the same configuration when they are read back.

        Args:
            config: The configuration.
            settings: The settings that were written for it.
            allow_differences: Whether the tolerable fields may differ.

        Raises:
            ValueError: If another field differs.
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
        """Return the (height, width) of the images that a configuration reads, or None."""
        return None

    def explicit(self, config: Any) -> Any:
        """Return the configuration in a form in which equal functions have equal configurations.

        Defaults are written out, and fields that do not change the function of the tensors get one
        fixed value.
        """
        return dataclasses.replace(
            config,
            encoder=_explicit_encoder(config.encoder, config.input_channels),
            decoder=_explicit_decoder(config.decoder, config.encoder.latent_dim),
        )


def explicit_positions(positions: Any, grid: tuple[int, ...]) -> Any:
    """Return Fourier features with an explicit resolution, by default the shape of the grid."""
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
