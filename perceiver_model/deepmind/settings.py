"""Convert the settings of a transformers Perceiver (its config.json) to ours, and back."""

import dataclasses
from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

import torch

from perceiver_model.config import EncoderConfig

Fidelity = Literal["deepmind", "transformers"]
"""The function that a model computes with the weights, where the port differs from the original.

- "deepmind" is what DeepMind trained and evaluated: the tanh GELU, SAME padding in the
  convolutional stem, and no query residual in the decoder with learned positions.
- "transformers" is what the port computes from the same weights: the GELU of its `hidden_act`, its
  own padding, and that residual. Choose it for weights that were trained with the port.
"""

DEFAULTS: dict[str, Any] = {
    "num_latents": 256,
    "d_latents": 1280,
    "d_model": 768,
    "num_blocks": 1,
    "num_self_attends_per_block": 26,
    "num_self_attention_heads": 8,
    "num_cross_attention_heads": 8,
    "qk_channels": None,
    "v_channels": None,
    "cross_attention_shape_for_attention": "kv",
    "self_attention_widening_factor": 1,
    "cross_attention_widening_factor": 1,
    "hidden_act": "gelu",
    "use_query_residual": True,
    "vocab_size": 262,
    "max_position_embeddings": 2048,
    "image_size": 56,
    "train_size": (368, 496),
    "num_frames": 16,
    "audio_samples_per_frame": 1920,
    "samples_per_patch": 16,
    "output_shape": (1, 16, 224, 224),
    "output_num_channels": 512,
    "_label_trainable_num_channels": 1024,
}
"""The default of transformers for each setting that config.json may leave out."""

MAX_SIZE = 1 << 16
"""The most blocks, pixels a side, frames and samples a frame that a checkpoint may ask for."""

_SIZES = (
    "num_blocks", "image_size", "train_size", "num_frames", "audio_samples_per_frame",
    "output_shape",
)  # fmt: skip

_GELUS: dict[str, Literal["tanh", "erf"]] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_fast": "tanh",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}


def setting(settings: Mapping[str, Any], name: str) -> Any:
    """Return a setting, or the default of transformers."""
    return settings.get(name, DEFAULTS[name])


def check_sizes(settings: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse counts that would take memory or time although no tensor of the checkpoint has them.

    Args:
        settings: The settings in config.json. They are untrusted.
        num_tensors: The number of tensors of the checkpoint.

    Raises:
        ValueError: A count is larger than in any checkpoint.
    """
    limits = {"num_self_attends_per_block": num_tensors} | dict.fromkeys(_SIZES, MAX_SIZE)
    for name, limit in limits.items():
        value = setting(settings, name)
        for size in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(size, int) or not 0 <= size <= limit:
                raise ValueError(f"config.json: {name} is {value!r}; at most {limit} fits")


def num_classes(
    settings: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], layer: str
) -> int:
    """Return the width of the last layer, or else the number in the settings, by default 2.

    Args:
        settings: The settings in config.json.
        state_dict: The tensors of the checkpoint, which may be empty.
        layer: The name of the last layer in transformers.
    """
    bias = state_dict.get(f"{layer}.bias")
    if bias is not None:
        return len(bias)
    return settings.get("num_labels") or len(settings.get("id2label") or (0, 1))


def label_settings(count: int) -> dict[str, Any]:
    """Return names for `count` classes. transformers counts the classes by their names."""
    names = {index: f"LABEL_{index}" for index in range(count)}
    return {
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name: index for index, name in names.items()},
    }


def read_gelu(settings: Mapping[str, Any], fidelity: Fidelity) -> Literal["tanh", "erf"]:
    """Return the GELU of all MLPs.

    Raises:
        ValueError: If the activation is not a GELU.
    """
    activation = setting(settings, "hidden_act")
    if activation not in _GELUS:
        allowed = ", ".join(_GELUS)
        raise ValueError(f"config.json: hidden_act is {activation!r}; must be one of {allowed}")
    return "tanh" if fidelity == "deepmind" else _GELUS[activation]


def write_gelu(encoder: EncoderConfig) -> str:
    """Return the `hidden_act` that computes the encoder's GELU."""
    return "gelu" if encoder.gelu == "erf" else "gelu_pytorch_tanh"


def read_precision(fidelity: Fidelity) -> Literal["float64", "float32"]:
    """Return the precision of the Fourier features; transformers computes them in float32."""
    return "float32" if fidelity == "transformers" else "float64"


def read_encoder(settings: Mapping[str, Any], fidelity: Fidelity) -> EncoderConfig:
    """Return the configuration of the encoder.

    Raises:
        ValueError: If no class of DeepMind has such an encoder.
    """
    if not setting(settings, "use_query_residual"):
        raise ValueError("config.json: use_query_residual is false; must be true")
    shape = setting(settings, "cross_attention_shape_for_attention")
    if shape not in ("q", "kv"):
        raise ValueError(
            f"config.json: cross_attention_shape_for_attention is {shape!r}; must be 'q' or 'kv'"
        )
    latent_dim, qk_channels = setting(settings, "d_latents"), setting(settings, "qk_channels")
    return EncoderConfig(
        num_latents=setting(settings, "num_latents"),
        latent_dim=latent_dim,
        num_blocks=setting(settings, "num_blocks"),
        num_cross_attends=1,
        num_self_attends=setting(settings, "num_self_attends_per_block"),
        num_cross_heads=setting(settings, "num_cross_attention_heads"),
        num_self_heads=setting(settings, "num_self_attention_heads"),
        cross_channels=qk_channels or (latent_dim if shape == "q" else None),
        cross_value_channels=setting(settings, "v_channels"),
        self_channels=qk_channels,
        self_value_channels=setting(settings, "v_channels"),
        cross_widening=setting(settings, "cross_attention_widening_factor"),
        self_widening=setting(settings, "self_attention_widening_factor"),
        gelu=read_gelu(settings, fidelity),
    )


def write_encoder(encoder: EncoderConfig, input_channels: int) -> dict[str, Any]:
    """Return the settings from which `read_encoder` makes this encoder again.

    Args:
        encoder: The configuration of the encoder.
        input_channels: The number of channels of a token.

    Raises:
        ValueError: If transformers cannot have these widths, because it has one setting for both
            kinds of attends.
    """
    settings = {
        "num_latents": encoder.num_latents,
        "d_latents": encoder.latent_dim,
        "d_model": input_channels,
        "num_blocks": encoder.num_blocks,
        "num_self_attends_per_block": encoder.num_self_attends,
        "num_self_attention_heads": encoder.num_self_heads,
        "num_cross_attention_heads": encoder.num_cross_heads,
        "self_attention_widening_factor": encoder.self_widening,
        "cross_attention_widening_factor": encoder.cross_widening,
        "hidden_act": write_gelu(encoder),
        "attention_probs_dropout_prob": 0.0,
        "use_query_residual": True,
    }
    return settings | _write_widths(explicit_widths(encoder, input_channels), input_channels)


def explicit_widths(encoder: EncoderConfig, input_channels: int) -> EncoderConfig:
    """Return the same encoder with every width written out."""
    cross_channels = encoder.cross_channels or input_channels
    self_channels = encoder.self_channels or encoder.latent_dim
    return dataclasses.replace(
        encoder,
        cross_channels=cross_channels,
        cross_value_channels=encoder.cross_value_channels or cross_channels,
        self_channels=self_channels,
        self_value_channels=encoder.self_value_channels or self_channels,
    )


def _write_widths(encoder: EncoderConfig, input_channels: int) -> dict[str, Any]:
    """Return the settings for these widths, with None where the default fits."""
    wanted = {
        name: getattr(encoder, name)
        for name in (
            "cross_channels",
            "cross_value_channels",
            "self_channels",
            "self_value_channels",
        )
    }
    for qk_channels, v_channels, shape in product(
        (None, encoder.self_channels), (None, encoder.self_value_channels), ("kv", "q")
    ):
        cross = qk_channels or (encoder.latent_dim if shape == "q" else input_channels)
        own = qk_channels or encoder.latent_dim
        if (cross, v_channels or cross, own, v_channels or own) == tuple(wanted.values()):
            return {
                "qk_channels": qk_channels,
                "v_channels": v_channels,
                "cross_attention_shape_for_attention": shape,
            }
    names = ", ".join(f"{name} = {value}" for name, value in wanted.items())
    raise ValueError(f"EncoderConfig: {names}: transformers has no settings for these widths")
