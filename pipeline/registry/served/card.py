"""The card of a registered model: what its weights need to be used.

A card and its weights come from a registry, so both are untrusted. They are checked against each
other before memory is allocated for the model.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from perceiver_model.adapters.backbone_config import backbone_of
from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.config import FourierConfig
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.language_config import LanguageConfig
from perceiver_model.families.queries_config import QueriesConfig
from perceiver_model.tokens_config import TokensConfig
from pipeline.media import MediaFormat, media_from_dict, media_to_dict
from pipeline.media.format import Media, by_modality
from pipeline.media.registered import modality_of
from pipeline.training.objectives import Objective, name_field, objective_class

CARD_FILE, WEIGHTS_FILE = "card.json", "model.safetensors"
MAX_CARD_BYTES = 256 * 1024**2
MAX_LAYERS = 10_000
MAX_TOKENS = 1 << 24
MAX_POSITION_NUMBERS = 1 << 31
"""Limits on a model's input: its tokens, and the numbers in its Fourier position table."""

_MAX_INTEGER = 1 << 40
_STREAM = "stream"
_MEND = "fetch the model again, or register it anew"


class ModelCardError(ValueError):
    """A card or its weights are damaged or do not belong together. The message is one line."""


@dataclass(frozen=True)
class ModelCard:
    """Everything besides the weights that a model needs to take raw media.

    Attributes:
        objective: What the model is trained for and how it answers.
        media: The format of its media, or the formats of several modalities by their names; for
            tables, a `FittedTableFormat`.
        is_stream: Whether the model reads the parts of a file in order and carries its latents from
            part to part. Its answer is that after the last part.
    """

    objective: Objective
    media: Media
    is_stream: bool = False

    @property
    def formats(self) -> dict[str, MediaFormat]:
        """The formats by modality."""
        return by_modality(self.media)

    def to_json(self) -> str:
        """Return the card as JSON text."""
        values = {
            **name_field(type(self.objective)),
            **self.objective.to_card(),
            "media": _media_to_json(self.media),
            **({_STREAM: True} if self.is_stream else {}),
        }
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, backbones: Collection[str] | None = None) -> "ModelCard":
        """Return the card that `to_json` wrote.

        Args:
            text: The card.
            backbones: The modules that may be imported as the model's backbone; None for any.

        Raises:
            ValueError: The text is not a card, or its parts contradict each other, or it has
                another backbone.
        """
        values = json.loads(text)
        name = values.get("objective") if isinstance(values, dict) else None
        if name is not None and not isinstance(name, str):
            raise ValueError("objective is no name")
        kind = objective_class(name)
        fields = {*kind.card_fields, "media", *name_field(kind)}
        is_stream = isinstance(values, dict) and values.pop(_STREAM, False)
        if not isinstance(is_stream, bool):
            raise ValueError(f"{_STREAM} is neither true nor false")
        found = values.keys() - kind.optional_card_fields if isinstance(values, dict) else None
        if not isinstance(values, dict) or found != fields:
            raise ValueError(f"a card has the fields {', '.join(sorted(fields))}")
        _check_numbers(values)
        try:
            objective = kind.from_card(values)
            media = _media_from_json(values["media"])
            backbone = backbone_of(objective.model_config)
            if backbone and backbones is not None and backbone.module not in backbones:
                raise ValueError(f"its backbone {backbone.module} is code that is not trusted here")
            _check_size(objective.model_config)
            if is_stream:
                _check_stream(objective, media)
        except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        return cls(objective, media, is_stream)


def _check_stream(objective: Objective, media: Media) -> None:
    """Refuse a model that cannot carry latents, or whose files have no parts.

    Raises:
        ValueError: The objective has no streams, or the media are not one modality in parts.
    """
    reads = type(objective).stream_outputs is not Objective.stream_outputs
    if not reads or not isinstance(media, MediaFormat) or not modality_of(media).cuts(media):
        raise ValueError(f"{_STREAM} is given, and the model reads no files in parts")


def _media_to_json(media: Media) -> dict[str, Any]:
    if isinstance(media, MediaFormat):
        return media_to_dict(media)
    return {name: media_to_dict(fmt) for name, fmt in media.items()}


def _media_from_json(values: Any) -> Media:
    """Return the format, or the formats by modality. One format has a field `modality`.

    Raises:
        ValueError: There are not several modalities, or a format is not of its modality.
    """
    if "modality" in values:
        return media_from_dict(values)
    formats = {name: media_from_dict(fmt) for name, fmt in values.items()}
    if len(formats) < 2 or any(name != fmt.modality for name, fmt in formats.items()):
        raise ValueError("media are neither one modality nor several by name")
    return formats


def read_card(path: Path, backbones: Collection[str] | None = None) -> ModelCard:
    """Read the card in a file.

    Args:
        path: The file.
        backbones: As for `ModelCard.from_json`.

    Raises:
        ModelCardError: The file holds no card.
    """
    try:
        _check_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_CARD_BYTES + 1)
        if len(content) > MAX_CARD_BYTES:
            raise ValueError(f"larger than {MAX_CARD_BYTES} bytes")
        return ModelCard.from_json(content.decode("utf-8"), backbones)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCardError(f"{path}: no card of a model ({_one_line(error)}); {_MEND}") from None


def read_weights(path: Path, objective: Objective) -> dict[str, torch.Tensor]:
    """Read the weights in a safetensors file, by name, after checking what the file declares.

    Args:
        path: The file.
        objective: The objective, which builds the model. The model takes no memory until the file
            fits it.

    Raises:
        ModelCardError: The file is not a safetensors file, or has other tensors than the model.
    """
    try:
        _check_regular(path)
        expected = _shapes(objective.build_model)
        with safe_open(path, framework="pt") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118  # safe_open cannot be iterated itself
                part = file.get_slice(name)
                found[name] = (tuple(part.get_shape()), str(part.get_dtype()))
        odd = [name for name in expected.keys() | found if expected.get(name) != found.get(name)]
        if odd:
            raise ValueError(f"{len(odd)} tensors differ from the card's model: {min(odd)[:200]!r}")
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        reason = _one_line(error)
        raise ModelCardError(f"{path}: no weights of this model ({reason}); {_MEND}") from None


def _check_regular(path: Path) -> None:
    """Refuse a path that is not a regular file, because opening a pipe would block.

    Raises:
        OSError: The path is not a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - as everywhere for S_ISREG
        raise OSError("no regular file")


def _check_numbers(tree: Any) -> None:
    """Refuse numbers that are not finite, and integers that are larger than any field needs.

    Raises:
        ValueError: There is such a number.
    """
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is not finite")
        elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ValueError(f"an integer is larger than {_MAX_INTEGER}")


def _check_size(config: Any) -> None:
    """Refuse sizes that would take memory or time although no weight in the file needs them.

    Raises:
        ValueError: There are more layers, tokens or positions than in any model.
    """
    if isinstance(config, ARConfig):
        if config.num_self_attends > MAX_LAYERS or config.max_length > MAX_TOKENS:
            raise ValueError(f"more than {MAX_LAYERS} layers or {MAX_TOKENS} tokens")
        return
    encoder = config.encoder
    layers = encoder.num_blocks * max(encoder.num_self_attends, 1) + encoder.num_cross_attends
    if layers > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS} layers")
    if isinstance(config, QueriesConfig) and config.num_queries > MAX_TOKENS:
        raise ValueError(f"more than {MAX_TOKENS} outputs")
    if isinstance(config, DenseConfig) and math.prod(config.outputs) > MAX_TOKENS:
        raise ValueError(f"more than {MAX_TOKENS} outputs")
    if isinstance(config, LanguageConfig):
        if config.input.max_length > MAX_TOKENS:
            raise ValueError(f"more than {MAX_TOKENS} tokens")
        return
    for part in _token_parts(config):
        tokens = sum(math.prod(grid) for grid in part.token_grids)
        if tokens > MAX_TOKENS:
            raise ValueError(f"more than {MAX_TOKENS} tokens")
        if isinstance(part.positions, FourierConfig):
            channels = part.token_dims * (2 * part.positions.num_bands + 1)
            if tokens * channels > MAX_POSITION_NUMBERS:
                raise ValueError(f"more than {MAX_POSITION_NUMBERS} numbers of positions")


def _token_parts(config: Any) -> Iterator[TokensConfig]:
    if isinstance(config.input, MultimodalInput):
        yield from config.input.modalities.values()
    else:
        yield config


def _shapes(build: Callable[[], nn.Module]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and safetensors dtype of each tensor of the model from `build`."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    with torch.device("meta"):
        state = build().state_dict()
    return {name: (tuple(each.shape), names[each.dtype]) for name, each in state.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
