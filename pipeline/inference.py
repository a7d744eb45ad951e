"""Raw media to class names and probabilities.

Travels with every registered model: imports torch, numpy and the decoders, and nothing else of the
pipeline.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from perceiver_model import PerceiverClassifier
from perceiver_model.classifier_config import ClassifierConfig
from pipeline.collate import collate
from pipeline.media import (
    FittedTableFormat,
    MediaError,
    MediaFormat,
    decode,
    media_from_dict,
    media_to_dict,
)

BATCH_SIZE = 64

MediaSource = bytes | str | Path | Mapping[str, Any]
"""A path, the bytes of a file, or a table's row."""


@dataclass(frozen=True)
class ModelCard:
    """All that a set of weights needs beside itself to take raw media.

    Attributes:
        media: of tables, a :class:`~pipeline.media.FittedTableFormat`.
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
        source: the path, or ``bytes[N]`` for the N-th input given as bytes, ``row[N]`` as a row.
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

    def predict(self, inputs: Sequence[MediaSource]) -> list[Prediction]:
        """Classify files or encoded media, in the order given.

        Of a film its first clip is taken, of a text its first context.

        Args:
            inputs: paths, or the bytes of files; of tables, also rows as dictionaries, and files
                and bytes are one JSON object each. What cannot be decoded gets an ``error``.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(inputs), BATCH_SIZE):
            predictions += self._predict_batch(inputs[start : start + BATCH_SIZE], start)
        return predictions

    def _predict_batch(self, inputs: Sequence[MediaSource], start: int) -> list[Prediction]:
        sources, arrays, errors = [], [], {}
        for row, item in enumerate(inputs):
            sources.append(_source_name(item, start + row))
            try:
                arrays.append(self._decode(item))
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

    def _decode(self, item: MediaSource) -> np.ndarray:
        media = self.card.media
        if isinstance(item, Mapping):
            if not isinstance(media, FittedTableFormat):
                raise MediaError(f"a row of a table, but the model takes {media.modality}")
            return media.encode_row(item)
        if isinstance(item, str | Path):
            return decode(Path(item).read_bytes(), media, name=str(item))
        return decode(item, media)

    def _prediction(self, source: str, probabilities: np.ndarray) -> Prediction:
        best = int(probabilities.argmax())
        by_class = dict(zip(self.card.classes, map(float, probabilities), strict=True))
        label = self.card.classes[best]
        return Prediction(source, label, by_class[label], by_class, None)

    @torch.inference_mode()
    def probabilities(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Class probabilities of decoded media.

        Args:
            arrays: at least one, as :func:`pipeline.media.check_array` says.

        Returns:
            float64 ``[len(arrays), classes]``; rows sum to 1.
        """
        inputs, mask = collate(arrays, self.card.media, self.device)
        logits = self.model(inputs, mask)
        return logits.double().softmax(dim=1).cpu().numpy()


def _source_name(item: MediaSource, number: int) -> str:
    if isinstance(item, str | Path):
        # A name that is not UTF-8 could be written to no table.
        return str(item).encode("utf-8", "backslashreplace").decode()
    return f"row[{number}]" if isinstance(item, Mapping) else f"bytes[{number}]"


def as_inputs(values: Any, *, takes_rows: bool = False) -> list[MediaSource]:
    """The inputs in whatever MLflow hands over: a value, a list, an array, or a table.

    Args:
        takes_rows: whether the model reads tables: a table is then rows, and else one column of
            paths or bytes.

    Raises:
        ValueError: something that is neither bytes nor a path nor such a row, or a table of several
            columns.
    """
    if isinstance(values, bytes | str) or (takes_rows and isinstance(values, Mapping)):
        values = [values]
    elif hasattr(values, "columns"):
        if takes_rows:
            values = values.to_dict("records")
        elif len(values.columns) != 1:
            raise ValueError(
                f"a table with columns {list(values.columns)}; give one column of paths or bytes"
            )
        else:
            values = values.iloc[:, 0].tolist()
    elif isinstance(values, np.ndarray):
        values = values.ravel().tolist()
    elif isinstance(values, dict):
        raise ValueError(f"a dictionary with keys {list(values)}; give paths or bytes")
    inputs = list(values)
    allowed = (bytes, str, Path, Mapping) if takes_rows else (bytes, str, Path)
    for item in inputs:
        if not isinstance(item, allowed):
            wanted = "rows, paths or bytes" if takes_rows else "paths or bytes"
            raise ValueError(f"a {type(item).__name__} among the inputs; give {wanted}")
    return inputs
