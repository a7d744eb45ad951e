"""Predict from raw media.

Every registered model carries this module. It imports torch, NumPy and the decoders, and only the
parts of the pipeline that the model also carries.
"""

import copy
import errno
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.inputs.attention_view import View, no_view
from pipeline.inputs.collate import collate_samples
from pipeline.media import MediaError, MediaFormat
from pipeline.media.arrays import Decoder
from pipeline.media.registered import modality_of
from pipeline.registry.served.attention import CARRIED, attention_views
from pipeline.registry.served.card import ModelCard, read_card, read_weights
from pipeline.registry.served.requests import BadInput, MediaSource, as_inputs
from pipeline.training.objectives import Batch, Objective, Prediction
from pipeline.training.objectives.carried import Carried, read_part

__all__ = ["MediaSource", "ModelCard", "Prediction", "Predictor", "as_inputs"]

BATCH_SIZE = 64
DECODE_SECONDS = 60.0
DECODE_MEMORY_MIB = 2048
MAX_FILE_BYTES = 2 * 1024**3


class Predictor:
    """A model with its weights, ready for raw media.

    Media are decoded in a child process with limits on time and memory.

    Args:
        card: The model's card.
        weights: float32 tensors by parameter name.
        device: The device to compute on. The default is the GPU if there is one.
        decode_seconds: The processor time allowed for decoding one input, in seconds.
        decode_memory_mib: The memory allowed for decoding, in MiB.
        strict: Whether to refuse media that are damaged or cut short.
        sandbox: `best` or `require`, as for `Decoder`.
    """

    def __init__(
        self,
        card: ModelCard,
        weights: dict[str, torch.Tensor],
        device: torch.device | None = None,
        *,
        decode_seconds: float = DECODE_SECONDS,
        decode_memory_mib: int = DECODE_MEMORY_MIB,
        strict: bool = True,
        sandbox: str = "best",
    ) -> None:
        self.card = card
        self.decoders = {
            name: Decoder(
                fmt,
                seconds=decode_seconds,
                memory_bytes=decode_memory_mib * 1024**2,
                strict=strict,
                sandbox=sandbox,
                in_parts=card.is_stream,
            )
            for name, fmt in card.formats.items()
        }
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = card.objective.build_model()
        self.model.load_state_dict(weights)
        self.model.to(self.device).eval()

    @classmethod
    def load(
        cls,
        card: str | Path,
        weights: str | Path,
        *,
        decode_seconds: float = DECODE_SECONDS,
        decode_memory_mib: int = DECODE_MEMORY_MIB,
        strict: bool = True,
        sandbox: str = "best",
        backbones: Collection[str] | None = None,
    ) -> "Predictor":
        """Load a card and weights from files. The other arguments are the constructor's.

        Args:
            backbones: The modules that may be imported as the model's backbone. None allows any:
                the caller runs the code of the registered model anyway.

        Raises:
            ModelCardError: A file is damaged, or the two do not belong together.
        """
        read = read_card(Path(card), backbones)
        return cls(
            read,
            read_weights(Path(weights), read.objective),
            decode_seconds=decode_seconds,
            decode_memory_mib=decode_memory_mib,
            strict=strict,
            sandbox=sandbox,
        )

    def predict(self, inputs: Sequence[MediaSource | str]) -> list[Prediction]:
        """Predict files or encoded media, in the given order.

        Of a film, only the first clip is used; of a text, only the first context. A model of
        streams reads all parts of a file, one after another, and answers after the last one.

        Args:
            inputs: The bytes of files, or paths of files on this machine. For tables, rows as
                dictionaries are also accepted, and each file is one JSON object. With several
                modalities, an input is a dictionary from their names to bytes, paths or texts, with
                the columns of a table beside them; it may lack modalities. An input that
                cannot be decoded gets an `error`. A client's inputs must go through `as_inputs`
                first, which removes paths.

        Raises:
            SandboxError: No child process can be started to decode the inputs.
        """
        if self.card.is_stream:
            return [self._predict_stream(item, number) for number, item in enumerate(inputs)]
        predictions: list[Prediction] = []
        for start in range(0, len(inputs), BATCH_SIZE):
            predictions += self._predict_batch(inputs[start : start + BATCH_SIZE], start)
        return predictions

    def with_objective(self, objective: Objective) -> "Predictor":
        """Return a predictor of the same model and decoders that answers by another objective."""
        other = copy.copy(self)
        other.card = replace(self.card, objective=objective)
        return other

    def predict_with_attention(
        self, inputs: Sequence[MediaSource | str]
    ) -> list[tuple[Prediction, dict[str, View] | None]]:
        """Predict the same one by one, with where the latents look, by modality.

        Args:
            inputs: The same as for `predict`.

        Returns:
            The prediction and the views of each input; None for one that cannot be used.

        Raises:
            SandboxError: No child process can be started to decode the inputs.
        """
        if self.card.is_stream:
            none = {name: no_view(CARRIED) for name in self.card.formats}
            found = self.predict(inputs)
            return [(each, none if each.error is None else None) for each in found]
        answers: list[tuple[Prediction, dict[str, View] | None]] = []
        for number, item in enumerate(inputs):
            source, arrays = _source_name(item, number), self._decoded(item)
            if isinstance(arrays, str):
                answers.append((self.card.objective.prediction.unusable(source, arrays), None))
            else:
                (prediction,) = self._answers([arrays], [source])
                answers.append((prediction, self._views(arrays)))
        return answers

    def _views(self, arrays: Mapping[str, np.ndarray]) -> dict[str, View]:
        """Return where the latents look in one decoded input."""
        formats, objective = self.card.formats, self.card.objective
        stored = {
            name: torch.tensor(modality_of(formats[name]).model_array(array, formats[name]))
            for name, array in arrays.items()
        }
        batch = objective.as_asked(self._batch([arrays]))
        return attention_views(objective, self.model, formats, stored, batch)

    def _predict_stream(self, item: MediaSource | str, number: int) -> Prediction:
        """Predict one input part by part, with the memory of one part."""
        source = _source_name(item, number)
        try:
            return self._stream_answer(self._parts(item), source)
        except ValueError as error:  # a MediaError, or a path that no file can have
            reason = str(error)
        except OSError as error:
            reason = error.strerror or type(error).__name__
        return self.card.objective.prediction.unusable(source, reason)

    def _parts(self, item: MediaSource | str) -> Iterator[dict[str, np.ndarray]]:
        """Yield the parts of one input, each by its modality."""
        ((name, decoder),) = self.decoders.items()
        if isinstance(item, BadInput):
            raise MediaError(item.reason)
        if isinstance(item, Mapping):
            raise MediaError(f"a row of a table, but the model takes {name}")
        if isinstance(item, str | Path):
            arrays = decoder.decode_parts(_read_file(item), str(item))
        else:
            arrays = decoder.decode_parts(bytes(item))
        for array in arrays:
            yield {name: array}

    @torch.inference_mode()
    def _stream_answer(self, parts: Iterator[dict[str, np.ndarray]], source: str) -> Prediction:
        """Return the prediction after the last part, of which there is at least one."""
        objective, carried, outputs = self.card.objective, Carried(), None
        for number, arrays in enumerate(parts):
            first = torch.tensor([number == 0], device=self.device)
            outputs, carried = read_part(
                objective, self.model, self._batch([arrays]), first, carried
            )
        if outputs is None:
            raise MediaError("the decoder gave no part")
        (prediction,) = objective.predictions(outputs, [source])
        return prediction

    def _predict_batch(self, inputs: Sequence[MediaSource | str], start: int) -> list[Prediction]:
        sources, arrays, errors = [], [], {}
        for row, item in enumerate(inputs):
            sources.append(_source_name(item, start + row))
            decoded = self._decoded(item)
            if isinstance(decoded, str):
                errors[row] = decoded
            else:
                arrays.append(decoded)
        good = [source for row, source in enumerate(sources) if row not in errors]
        answers = iter(self._answers(arrays, good) if arrays else [])
        return [
            self.card.objective.prediction.unusable(source, errors[row])
            if row in errors
            else next(answers)
            for row, source in enumerate(sources)
        ]

    def _decoded(self, item: MediaSource | str) -> dict[str, np.ndarray] | str:
        """Return the arrays of one input, by modality, or why it cannot be used."""
        try:
            return self._decode(item)
        except OSError as error:
            return error.strerror or type(error).__name__
        except ValueError as error:  # a MediaError, or a path that no file can have
            return str(error)

    def _decode(self, item: MediaSource | str) -> dict[str, np.ndarray]:
        """Return the arrays of one input, by modality."""
        formats = self.card.formats
        if isinstance(item, BadInput):
            raise MediaError(item.reason)
        if len(formats) == 1:
            ((name, fmt),) = formats.items()
            if isinstance(item, Mapping):
                return {name: _encode_row(item, fmt)}
            return {name: self._decode_file(name, item)}
        if not isinstance(item, Mapping):
            raise MediaError(f"not a row with {', '.join(formats)}")
        return self._decode_several(item)

    def _decode_several(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the arrays of the modalities that a row has."""
        arrays = {}
        for name, fmt in self.card.formats.items():
            modality = modality_of(fmt)
            if modality.source == "row":
                own = {column.name: row.get(column.name) for column in modality.columns(fmt)}
                if any(value is not None for value in own.values()):
                    arrays[name] = _encode_row(own, fmt)
                continue
            value = row.get(name)
            if isinstance(value, BadInput):
                raise MediaError(f"{name}: {value.reason}")
            if isinstance(value, str) and modality.source == "text":
                value = value.encode("utf-8", "surrogateescape")
            if value is not None:
                try:
                    arrays[name] = self._decode_file(name, value)
                except MediaError as error:
                    raise MediaError(f"{name}: {error}") from None
                except OSError as error:
                    reason = error.strerror or type(error).__name__
                    raise MediaError(f"{name}: {_source_name(value, 0)}: {reason}") from None
        if not arrays:
            raise MediaError(f"has none of {', '.join(self.card.formats)}")
        return arrays

    def _decode_file(self, name: str, item: bytes | str | Path) -> np.ndarray:
        if isinstance(item, str | Path):
            return self.decoders[name].decode(_read_file(item), str(item))
        return self.decoders[name].decode(bytes(item))

    @torch.inference_mode()
    def _answers(
        self, arrays: Sequence[Mapping[str, np.ndarray]], sources: Sequence[str]
    ) -> list[Prediction]:
        """Return the predictions for decoded media, at least one."""
        objective = self.card.objective
        return objective.predictions(objective.answers(self.model, self._batch(arrays)), sources)

    def _batch(self, arrays: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """Return decoded media as the objective takes them."""
        inputs, mask = collate_samples(arrays, self.card.formats, self.device)
        size = len(arrays)
        return Batch(
            inputs,
            mask,
            targets=torch.full((size,), -1, device=self.device),
            target_lengths=torch.zeros(size, dtype=torch.int64, device=self.device),
            weights=torch.ones(size, device=self.device),
            numbers=torch.arange(size),
        )


def _encode_row(row: Mapping[str, Any], fmt: MediaFormat) -> np.ndarray:
    encoded: np.ndarray = modality_of(fmt).encode_row(row, fmt, careful=True)
    return encoded


def _read_file(path: str | Path) -> bytes:
    """Return a regular file's content. Anything else is opened only to see what it is.

    Raises:
        OSError: The file cannot be read.
        MediaError: The path is not a regular file, or the file is too large.
        ValueError: No file can have this path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(about.st_mode):
            raise MediaError("not a regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise MediaError(f"a file of more than {MAX_FILE_BYTES} bytes")
    return data


def _source_name(item: MediaSource | str, number: int) -> str:
    if isinstance(item, str | Path):
        # A name that is not UTF-8 could not be written to a table.
        return str(item).encode("utf-8", "backslashreplace").decode()
    return f"row[{number}]" if isinstance(item, Mapping) else f"bytes[{number}]"
