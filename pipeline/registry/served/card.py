"""The card of a registered model: what a set of weights needs beside itself.

A card and its weights come from a registry, so neither is believed: both are checked against each
other before memory is taken for the model.
"""

import dataclasses
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.config import FourierConfig
from perceiver_model.tokens_config import TokensConfig
from pipeline.media import MediaFormat, media_from_dict, media_to_dict
from pipeline.training.objectives import Objective, name_field, objective_class

CARD_FILE, WEIGHTS_FILE = "card.json", "model.safetensors"
MAX_CARD_BYTES = 256 * 1024**2
MAX_LAYERS = 10_000
MAX_TOKENS = 1 << 24
MAX_POSITION_NUMBERS = 1 << 31
"""Of a model's input: its tokens, and the numbers of its Fourier position table."""

_MAX_INTEGER = 1 << 40
_MEND = "fetch the model again, or register it anew"


class ModelCardError(ValueError):
    """A card or its weights are damaged, or do not belong together; the text is one line."""


@dataclass(frozen=True)
class ModelCard:
    """All that a set of weights needs beside itself to take raw media.

    Attributes:
        objective: what the model is and answers.
        media: of tables, a `FittedTableFormat`.
    """

    objective: Objective
    media: MediaFormat

    def to_json(self) -> str:
        """The card as JSON text."""
        values = {
            **name_field(type(self.objective)),
            **self.objective.to_card(),
            "media": media_to_dict(self.media),
        }
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """The inverse of `to_json`.

        Raises:
            ValueError: it is no card, or one whose parts contradict each other.
        """
        values = json.loads(text)
        name = values.get("objective") if isinstance(values, dict) else None
        if name is not None and not isinstance(name, str):
            raise ValueError("objective is no name")
        kind = objective_class(name)
        fields = {*kind.card_fields, "media", *name_field(kind)}
        if not isinstance(values, dict) or values.keys() != fields:
            raise ValueError(f"a card has the fields {', '.join(sorted(fields))}")
        _check_numbers(values)
        try:
            objective = kind.from_card(values)
            media = media_from_dict(values["media"])
            _check_types(media)
            _check_size(objective.model_config)
        except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        return cls(objective, media)


def read_card(path: Path) -> ModelCard:
    """The card in a file.

    Raises:
        ModelCardError: there is no card in it.
    """
    try:
        _check_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_CARD_BYTES + 1)
        if len(content) > MAX_CARD_BYTES:
            raise ValueError(f"larger than {MAX_CARD_BYTES} bytes")
        return ModelCard.from_json(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCardError(f"{path}: no card of a model ({_one_line(error)}); {_MEND}") from None


def read_weights(path: Path, objective: Objective) -> dict[str, torch.Tensor]:
    """The weights in a safetensors file, float32 by name, after a look at what it declares.

    Args:
        objective: has the model that they are for; it takes no memory before the file fits it.

    Raises:
        ModelCardError: it is no such file, or has other tensors than the model.
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
    """Raises OSError: there is no regular file; a pipe would be waited for."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - as everywhere for S_ISREG
        raise OSError("no regular file")


def _check_numbers(tree: Any) -> None:
    """Raises ValueError: a number is not finite, or an integer is one that nothing has."""
    left = [tree]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is not finite")
        elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ValueError(f"an integer is larger than {_MAX_INTEGER}")


def _check_types(value: Any) -> None:
    """Raises ValueError: a plain field of a dataclass, or of one in it, is of another type."""
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if dataclasses.is_dataclass(found):
            _check_types(found)
        elif get_origin(field.type) is Literal:
            if not any(type(found) is type(one) and found == one for one in get_args(field.type)):
                raise ValueError(f"media.{field.name} is none of {get_args(field.type)}")
        elif field.type in (int, bool, str) and type(found) is not field.type:
            raise ValueError(f"media.{field.name} is no {field.type.__name__}")
        elif field.type is float and type(found) not in (int, float):
            raise ValueError(f"media.{field.name} is no number")


def _check_size(config: Any) -> None:
    """Refuse what takes memory or time without a weight in the file.

    Raises:
        ValueError: more layers, tokens or positions than any model has.
    """
    encoder = config.encoder
    layers = encoder.num_blocks * max(encoder.num_self_attends, 1) + encoder.num_cross_attends
    if layers > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS} layers")
    for part in _token_parts(config):
        tokens = math.prod(part.token_grid)
        if tokens > MAX_TOKENS:
            raise ValueError(f"more than {MAX_TOKENS} tokens")
        if isinstance(part.positions, FourierConfig):
            channels = len(part.token_grid) * (2 * part.positions.num_bands + 1)
            if tokens * channels > MAX_POSITION_NUMBERS:
                raise ValueError(f"more than {MAX_POSITION_NUMBERS} numbers of positions")


def _token_parts(config: Any) -> Iterator[TokensConfig]:
    if isinstance(config.input, MultimodalInput):
        yield from config.input.modalities.values()
    else:
        yield config


def _shapes(build: Callable[[], nn.Module]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors' name of the type of each tensor of the model that is built."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    with torch.device("meta"):
        state = build().state_dict()
    return {name: (tuple(each.shape), names[each.dtype]) for name, each in state.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
