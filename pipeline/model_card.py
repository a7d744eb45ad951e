"""The card of a registered model: what a set of weights needs beside itself.

A card and its weights come from a registry, so neither is believed: both are checked against each
other before memory is taken for the model.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from perceiver_model import PerceiverClassifier
from perceiver_model.classifier_config import ClassifierConfig
from pipeline.media import MediaFormat, media_from_dict, media_to_dict

MAX_CARD_BYTES = 256 * 1024**2
_FIELDS = {"classifier", "media", "classes"}
_MEND = "fetch the model again, or register it anew"


class ModelCardError(ValueError):
    """A card or its weights are damaged, or do not belong together; the text is one line."""


@dataclass(frozen=True)
class ModelCard:
    """All that a set of weights needs beside itself to take raw media.

    Attributes:
        media: of tables, a :class:`~pipeline.media.FittedTableFormat`.
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
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: it is no card, or one whose parts contradict each other.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != _FIELDS:
            raise ValueError(f"a card has the fields {', '.join(sorted(_FIELDS))}")
        classes = values["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes are no list of names")
        if len(set(classes)) != len(classes):
            raise ValueError("a class is named twice")
        try:
            classifier = ClassifierConfig.from_dict(values["classifier"])
            media = media_from_dict(values["media"])
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
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


def _shapes(config: ClassifierConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors' name of the type of each tensor of a model."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    with torch.device("meta"):
        state = PerceiverClassifier(config).state_dict()
    return {name: (tuple(each.shape), names[each.dtype]) for name, each in state.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
