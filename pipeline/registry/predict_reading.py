"""Read inputs and predict them, a few at a time."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.media.sandbox.sandbox import SandboxError
from pipeline.preprocess.sources.addresses import file_name
from pipeline.preprocess.sources.parts import SourceFile, read_part
from pipeline.preprocess.sources.reach import Reach
from pipeline.registry.predict_inputs import Input
from pipeline.registry.served.inference import Predictor
from pipeline.training.objectives import Prediction
from shards.parallel import in_order

AT_ONCE = 256
"""So many inputs are read and predicted together. It is a multiple of the model's batch, so that
the batches do not depend on where a prediction was cut into parts."""


def predict_inputs(
    predictor: Predictor, inputs: Iterator[Input], roots: Sequence[str]
) -> Iterator[list[Prediction]]:
    """Yield the predictions of inputs in order, `AT_ONCE` at a time.

    Args:
        predictor: The model.
        inputs: The inputs.
        roots: Where objects and tars lie; it may still be filled while the inputs are listed.

    Raises:
        UserError: No file can be decoded on this machine.
    """
    while chunk := list(islice(inputs, AT_ONCE)):
        with tempfile.TemporaryDirectory(prefix="perceiver-predict-") as folder:
            found = dict(enumerate(in_order(_Fetch(Path(folder), roots), enumerate(chunk))))
            good = [item for item in found.values() if not isinstance(item, _Refused)]
            try:
                answers = iter(predictor.predict(good) if good else [])
            except SandboxError as error:
                raise UserError(f"files cannot be decoded here: {error}") from None
            unusable = predictor.card.objective.prediction.unusable
            yield [
                unusable(each.source, item.reason)
                if isinstance(item, _Refused)
                else _named(next(answers), each, item)
                for each, item in zip(chunk, found.values(), strict=True)
            ]


class _Refused:
    """An input that cannot be read."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Fetch:
    """Return what the model takes of an input. Objects and members of tars are copied to files.

    A file has a name, and some formats are known by the extension of the name alone.

    Args:
        folder: A temporary folder for the copies.
        roots: Where objects and tars lie.
    """

    def __init__(self, folder: Path, roots: Sequence[str]) -> None:
        self._folder, self._roots = folder, roots

    def __call__(self, numbered: tuple[int, Input]) -> Any:
        number, given = numbered
        if given.error is not None:
            return _Refused(given.error)
        if given.row is not None or given.content is not None:
            return given.row if given.content is None else given.content
        assert given.path is not None
        if given.root is None:
            return Path(given.path)
        part = SourceFile("", given.path, given.offset, given.length, given.length or -1, "", None)
        try:
            data = read_part(Reach(self._roots[given.root], confined=False), part)
        except MediaError as error:
            return _Refused(str(error))
        except OSError as error:
            return _Refused(error.strerror or type(error).__name__)
        copy = self._folder / str(number) / (file_name(given.source) or "file")
        copy.parent.mkdir()
        try:
            copy.write_bytes(data)
        except OSError as error:  # a name that no file here can have
            return _Refused(f"cannot be copied: {os.strerror(error.errno or 0)}")
        return copy


def _named(prediction: Any, given: Input, item: Any) -> Prediction:
    """Return a prediction that names the input instead of its copy."""
    error = prediction.error and prediction.error.replace(str(item), given.source)
    named: Prediction = replace(prediction, source=given.source, error=error)
    return named
