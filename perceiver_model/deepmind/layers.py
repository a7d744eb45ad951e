"""The names of a transformers Perceiver's tensors and of ours, layer by layer.

DeepMind's released weights are read and written in the layout of their port to Hugging Face
transformers. This module maps the layers that its classes share. Each class adds its own.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from perceiver_model.config import EncoderConfig

PREPROCESSOR, DECODER = "perceiver.input_preprocessor", "perceiver.decoder.decoder"


class TensorMap(NamedTuple):
    """One of our tensors, and the transformers tensors that it contains.

    Attributes:
        ours: The name in our model's state dict.
        theirs: The names in transformers' state dict. Our tensor is these, joined along the first
            dimension.
        rows: The number of rows of each of their tensors; empty for a single tensor.
        shape: The shape of their tensor, if the same numbers have another shape there.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None


def tensor_map(ours: str, theirs: str, shape: tuple[int, ...] | None = None) -> list[TensorMap]:
    """Map one of our tensors to one of theirs.

    Args:
        ours: The name in our model's state dict.
        theirs: The name in transformers' state dict.
        shape: The shape of their tensor, if it differs from ours.
    """
    return [TensorMap(ours, (theirs,), shape=shape)]


def layer_map(ours: str, theirs: str) -> list[TensorMap]:
    """Map the weight and the bias of a linear layer or a normalisation."""
    return [
        *tensor_map(f"{ours}.weight", f"{theirs}.weight"),
        *tensor_map(f"{ours}.bias", f"{theirs}.bias"),
    ]


def cross_attend_map(ours: str, theirs: str) -> list[TensorMap]:
    """Map a `CrossAttend`. In transformers it is a `PerceiverLayer` with cross-attention."""
    attention = f"{theirs}.attention.self"
    return [
        *layer_map(f"{ours}.query_norm", f"{attention}.layernorm1"),
        *layer_map(f"{ours}.input_norm", f"{attention}.layernorm2"),
        *layer_map(f"{ours}.query", f"{attention}.query"),
        *layer_map(f"{ours}.key", f"{attention}.key"),
        *layer_map(f"{ours}.value", f"{attention}.value"),
        *_output_and_mlp_map(ours, theirs),
    ]


def self_attend_map(ours: str, theirs: str, widths: tuple[int, int, int]) -> list[TensorMap]:
    """Map a `SelfAttend`.

    Args:
        ours: The prefix of the names in our model's state dict.
        theirs: The prefix of the names in transformers' state dict.
        widths: The widths of its queries, keys and values over all heads.
    """
    attention = f"{theirs}.attention.self"
    projections = [f"{attention}.{name}" for name in ("query", "key", "value")]
    return [
        *layer_map(f"{ours}.attention_norm", f"{attention}.layernorm1"),
        *(
            TensorMap(
                f"{ours}.query_key_value.{kind}",
                tuple(f"{name}.{kind}" for name in projections),
                rows=widths,
            )
            for kind in ("weight", "bias")
        ),
        *_output_and_mlp_map(ours, theirs),
    ]


def _output_and_mlp_map(ours: str, theirs: str) -> list[TensorMap]:
    return [
        *layer_map(f"{ours}.output", f"{theirs}.attention.output.dense"),
        *layer_map(f"{ours}.mlp_norm", f"{theirs}.layernorm"),
        *layer_map(f"{ours}.mlp.expand", f"{theirs}.mlp.dense1"),
        *layer_map(f"{ours}.mlp.contract", f"{theirs}.mlp.dense2"),
    ]


def encoder_map(
    config: EncoderConfig, ours: str = "encoder", theirs: str = "perceiver"
) -> list[TensorMap]:
    """Map a `PerceiverEncoder`: its latents, its only cross-attend and its repeated block.

    Args:
        config: The configuration of the encoder.
        ours: The prefix of the names in our model's state dict.
        theirs: The prefix of the names in transformers' state dict.

    Raises:
        ValueError: If the encoder has several cross-attends, or blocks with their own weights.
    """
    if config.num_cross_attends != 1:
        raise ValueError(
            f"EncoderConfig.num_cross_attends = {config.num_cross_attends}: transformers has one"
        )
    if config.num_blocks > 1 and not config.share_self_attends:
        raise ValueError(
            "EncoderConfig.share_self_attends = False: transformers repeats one block's weights"
        )
    qk_channels = config.self_channels or config.latent_dim
    widths = (qk_channels, qk_channels, config.self_value_channels or qk_channels)
    return [
        *tensor_map(f"{ours}.latents", f"{theirs}.embeddings.latents"),
        *cross_attend_map(f"{ours}.cross_attends.0", f"{theirs}.encoder.cross_attention"),
        *(
            tensors
            for index in range(config.num_self_attends)
            for tensors in self_attend_map(
                f"{ours}.blocks.0.{index}", f"{theirs}.encoder.self_attends.{index}", widths
            )
        ),
    ]


def decoder_map(ours: str, theirs: str = DECODER, *, output: bool) -> list[TensorMap]:
    """Map a `PerceiverDecoder`.

    Args:
        ours: The prefix of the names in our model's state dict.
        theirs: The prefix of the names in transformers' state dict.
        output: Whether the decoder has a final linear layer.
    """
    return [
        *cross_attend_map(f"{ours}.cross_attend", f"{theirs}.decoding_cross_attention"),
        *(layer_map(f"{ours}.output", f"{theirs}.final_layer") if output else []),
    ]


def head_map() -> list[TensorMap]:
    """Map a `QueryHead`: its query and its decoder."""
    return [
        *tensor_map("head.query", f"{DECODER}.output_position_encodings.position_embeddings"),
        *decoder_map("head.decoder", output=True),
    ]


def load_tensors(
    model: nn.Module, tensors: Iterable[TensorMap], state_dict: Mapping[str, torch.Tensor]
) -> None:
    """Load a transformers state dict into the model.

    Args:
        model: Our model.
        tensors: The maps of all of its tensors.
        state_dict: The tensors by transformers' names.

    Raises:
        ValueError: If tensors are missing, unexpected or of the wrong shape. The error names all of
            them, and the model is unchanged.
    """
    maps = list(tensors)
    check_tensors(model, maps, state_dict)
    expected = model.state_dict()
    ours = {}
    for entry in maps:
        parts = [state_dict[name].detach() for name in entry.theirs]
        joined = torch.cat(parts) if entry.rows else parts[0]
        ours[entry.ours] = joined.reshape(expected[entry.ours].shape)
    model.load_state_dict(ours)


def check_tensors(
    model: nn.Module, tensors: Iterable[TensorMap], state_dict: Mapping[str, torch.Tensor]
) -> None:
    """Check that a transformers state dict has the tensors of a model, with their shapes.

    Args:
        model: Our model, which may lie on the meta device.
        tensors: The maps of all of its tensors.
        state_dict: The tensors by transformers' names.

    Raises:
        ValueError: If tensors are missing, unexpected or of the wrong shape. The error names all of
            them.
    """
    expected = model.state_dict()
    shapes = {
        name: shape
        for entry in tensors
        for name, shape in _their_shapes(entry, expected[entry.ours])
    }
    problems = [
        *(f"missing {name}" for name in shapes if name not in state_dict),
        *(f"unexpected {name}" for name in state_dict if name not in shapes),
        *(
            f"{name} of shape {list(state_dict[name].shape)}, expected {list(shape)}"
            for name, shape in shapes.items()
            if name in state_dict and state_dict[name].shape != shape
        ),
    ]
    if problems:
        raise ValueError(f"tensors that are not this model's: {'; '.join(problems)}")


def export_tensors(model: nn.Module, tensors: Iterable[TensorMap]) -> dict[str, torch.Tensor]:
    """Return copies of the model's tensors as a transformers state dict."""
    state_dict = model.state_dict()
    exported = {}
    for entry in tensors:
        tensor = state_dict[entry.ours].detach()
        parts = tensor.split(entry.rows) if entry.rows else (tensor,)
        for name, part in zip(entry.theirs, parts, strict=True):
            exported[name] = part.reshape(entry.shape or part.shape).clone().contiguous()
    return exported


def _their_shapes(entry: TensorMap, ours: torch.Tensor) -> list[tuple[str, torch.Size]]:
    """Return the names and shapes of their tensors for one of ours."""
    if not entry.rows:
        return [(entry.theirs[0], torch.Size(entry.shape or ours.shape))]
    return [
        (name, torch.Size((rows, *ours.shape[1:])))
        for name, rows in zip(entry.theirs, entry.rows, strict=True)
    ]
