"""The card of a registered model: what a set of weights needs beside itself.

A card and its weights come from a registry, so neither is believed: both are checked against each
other before memory is taken for the model.
"""

import dataclasses
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from perceiver_model import PerceiverClassifier
from perceiver_model.adapters.multimodal_config import MultimodalInput
from perceiver_model.config import FourierConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.tokens_config import TokensConfig
from pipeline.media import MediaFormat, media_from_dict, media_to_dict

CARD_FILE, WEIGHTS_FILE = "card.json", "model.safetensors"
MAX_CARD_BYTES = 256 * 1024**2
MAX_LAYERS = 10_000
MAX_TOKENS = 1 << 24
MAX_POSITION_NUMBERS = 1 << 31
"""Of a model's input: its tokens, and the numbers of its Fourier position table."""

_MAX_INTEGER = 1 << 40
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""As `shards.plain` has it, which does not travel with a registered model."""

_FIELDS = {"classifier", "media", "classes"}
_MEND = "fetch the model again, or register it anew"


class ModelCardError(ValueError):
    """A card or its weights are damaged, or do not belong together; the text is one line."""


@dataclass(frozen=True)
class ModelCard:
    """All that a set of weights needs beside itself to take raw media.

    Attributes:
        media: of tables, a `FittedTableFormat`.
        classes: their names, one for each output of the classifier.
    """

    classifier: ClassifierConfig
    media: MediaFormat
    classes: tuple[str, ...]

    def to_json(self) -> str:
        """The card as JSON text."""
        values = {
            "classifier": self.classifier.to_dict(),
            "media": media_to_dict(self.media),
            "classes": list(self.classes),
        }
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """The inverse of `to_json`.

        Raises:
            ValueError: it is no card, or one whose parts contradict each other.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != _FIELDS:
            raise ValueError(f"a card has the fields {', '.join(sorted(_FIELDS))}")
        classes = values["classes"]
        if not isinstance(classes, list) or not all(map(_is_printable, classes)):
            raise ValueError("classes are no list of printable names")
        if len(set(classes)) != len(classes):
            raise ValueError("a class is named twice")
        _check_numbers(values)
        try:
            classifier = ClassifierConfig.from_dict(values["classifier"])
            media = media_from_dict(values["media"])
            _check_types(media)
            _check_size(classifier)
        except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if classifier.num_classes != len(classes):
            raise ValueError(f"{len(classes)} classes for {classifier.num_classes} outputs")
        return cls(classifier, media, tuple(classes))


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


def read_weights(path: Path, config: ClassifierConfig) -> dict[str, torch.Tensor]:
    """The weights in a safetensors file, float32 by name, after a look at what it declares.

    Args:
        config: of the model that they are for; it takes no memory before the file fits it.

    Raises:
        ModelCardError: it is no such file, or has other tensors than the model.
    """
    try:
        _check_regular(path)
        expected = _shapes(config)
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


def _is_printable(value: Any) -> bool:
    return isinstance(value, str) and not _UNPRINTABLE.search(value)


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


def _check_size(config: ClassifierConfig) -> None:
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


def _token_parts(config: ClassifierConfig) -> Iterator[TokensConfig]:
    if isinstance(config.input, MultimodalInput):
        yield from config.input.modalities.values()
    else:
        yield config


def _shapes(config: ClassifierConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors' name of the type of each tensor of a model."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    with torch.device("meta"):
        state = PerceiverClassifier(config).state_dict()
    return {name: (tuple(each.shape), names[each.dtype]) for name, each in state.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
