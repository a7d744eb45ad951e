"""Raw media to class names and probabilities.

Travels with every registered model: imports torch, numpy and the decoders, and nothing else of the
pipeline.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from perceiver_model import PerceiverClassifier
from perceiver_model.classifier_config import ClassifierConfig
from pipeline.media import (
    ImageFormat,
    MediaError,
    MediaFormat,
    decode,
    media_from_dict,
    media_to_dict,
)

BATCH_SIZE = 64


@dataclass(frozen=True)
class ModelCard:
    """All that a set of weights needs beside itself to take raw media."""

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
        """The inverse of :meth:`to_json`."""
        values = json.loads(text)
        return cls(
            ClassifierConfig.from_dict(values["classifier"]),
            media_from_dict(values["media"]),
            tuple(values["classes"]),
        )


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one input.

    Attributes:
        source: the path, or ``bytes[N]`` for the N-th input given as bytes.
        label: name of the likeliest class; None where the input cannot be used.
        probability: of that class.
        probabilities: of every class, by name.
        error: why the input cannot be used, else None.
    """

    source: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float] | None
    error: str | None


class Predictor:
    """A model with its weights, ready for raw media.

    Args:
        card: what the model is and takes.
        weights: float32 tensors by parameter name.
        device: where to compute; the GPU if there is one.
    """

    def __init__(
        self,
        card: ModelCard,
        weights: dict[str, torch.Tensor],
        device: torch.device | None = None,
    ) -> None:
        self.card = card
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = PerceiverClassifier(card.classifier)
        self.model.load_state_dict(weights)
        self.model.to(self.device).eval()

    @classmethod
    def load(cls, card: str | Path, weights: str | Path) -> "Predictor":
        """Read a card and safetensors weights from files."""
        return cls(ModelCard.from_json(Path(card).read_text("utf-8")), load_file(weights))

    def predict(self, inputs: Sequence[bytes | str | Path]) -> list[Prediction]:
        """Classify files or encoded media, in the order given.

        Args:
            inputs: paths, or the bytes of files. What cannot be decoded gets an ``error``.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(inputs), BATCH_SIZE):
            predictions += self._predict_batch(inputs[start : start + BATCH_SIZE], start)
        return predictions

    def _predict_batch(self, inputs: Sequence[bytes | str | Path], start: int) -> list[Prediction]:
        sources, arrays, errors = [], [], {}
        for row, item in enumerate(inputs):
            is_path = isinstance(item, str | Path)
            name = str(item) if is_path else ""
            # A name that is not UTF-8 could be written to no table.
            shown = name.encode("utf-8", "backslashreplace").decode()
            sources.append(shown if is_path else f"bytes[{start + row}]")
            try:
                data = Path(item).read_bytes() if isinstance(item, str | Path) else item
                arrays.append(decode(data, self.card.media, name=name))
            except MediaError as error:
                errors[row] = str(error)
            except OSError as error:
                errors[row] = error.strerror or type(error).__name__
            except ValueError as error:  # a path that no file can have
                errors[row] = str(error)
        probabilities = iter(self.probabilities(arrays)) if arrays else iter(())
        return [
            Prediction(source, None, None, None, errors[row])
            if row in errors
            else self._prediction(source, next(probabilities))
            for row, source in enumerate(sources)
        ]

    def _prediction(self, source: str, probabilities: np.ndarray) -> Prediction:
        best = int(probabilities.argmax())
        by_class = dict(zip(self.card.classes, map(float, probabilities), strict=True))
        label = self.card.classes[best]
        return Prediction(source, label, by_class[label], by_class, None)

    @torch.inference_mode()
    def probabilities(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Class probabilities of decoded media.

        Args:
            arrays: at least one; uint8 ``[height, width, channels]`` or int16 ``[samples]`` each.

        Returns:
            float64 ``[len(arrays), classes]``; rows sum to 1.
        """
        inputs, mask = collate(arrays, self.card.media)
        if mask is not None:
            mask = mask.to(self.device)
        logits = self.model(inputs.to(self.device), mask)
        return logits.double().softmax(dim=1).cpu().numpy()


def collate(
    arrays: Iterable[np.ndarray | None], media: MediaFormat
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Stack decoded media; None leaves a row of zeros.

    Returns:
        uint8 ``[batch, height, width, channels]`` and None, or int16 ``[batch, samples]`` and the
        bool mask of samples that a recording has.

    Raises:
        ValueError: an array has another shape than ``media`` says.
    """
    rows = list(arrays)
    if isinstance(media, ImageFormat):
        images = np.zeros((len(rows), media.height, media.width, media.channels), np.uint8)
        for row, array in enumerate(rows):
            if array is not None:
                check_array(array, media)
                images[row] = array
        return torch.from_numpy(images), None
    sound = np.zeros((len(rows), media.num_samples), np.int16)
    mask = np.zeros(sound.shape, bool)
    for row, array in enumerate(rows):
        if array is not None:
            check_array(array, media)
            sound[row, : len(array)] = array
            mask[row, : len(array)] = True
    return torch.from_numpy(sound), torch.from_numpy(mask)


def check_array(array: np.ndarray, media: MediaFormat) -> None:
    """Refuse an array that is not what :func:`pipeline.media.decode` makes.

    Raises:
        ValueError: another dtype or shape.
    """
    if isinstance(media, ImageFormat):
        shape = (media.height, media.width, media.channels)
        fits = array.dtype == np.uint8 and array.shape == shape
    else:
        fits = array.dtype == np.int16 and array.ndim == 1 and len(array) <= media.num_samples
    if not fits:
        raise ValueError(f"{array.dtype} of shape {list(array.shape)} does not fit {media}")


def as_inputs(values: Any) -> list[bytes | str]:
    """The inputs in whatever MLflow hands over: a value, a list, an array, or a table's column.

    Raises:
        ValueError: something that is neither bytes nor a path, or a table of several columns.
    """
    if isinstance(values, bytes | str):
        values = [values]
    elif hasattr(values, "columns"):
        if len(values.columns) != 1:
            raise ValueError(
                f"a table with columns {list(values.columns)}; give one column of paths or bytes"
            )
        values = values.iloc[:, 0].tolist()
    elif isinstance(values, np.ndarray):
        values = values.ravel().tolist()
    elif isinstance(values, dict):
        raise ValueError(f"a dictionary with keys {list(values)}; give paths or bytes")
    inputs = list(values)
    for item in inputs:
        if not isinstance(item, bytes | str | Path):
            raise ValueError(f"a {type(item).__name__} among the inputs; give paths or bytes")
    return inputs
