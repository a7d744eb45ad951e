"""One part of a large prediction, made by this process or by an actor of Ray Data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipeline.config.folders import folder_at
from pipeline.errors import UserError
from pipeline.registry.predict_plan import read_plan
from pipeline.registry.predict_reading import predict_inputs
from pipeline.registry.prediction_tables import encode_predictions
from pipeline.registry.served.card import ModelCard
from pipeline.registry.served.inference import Predictor
from pipeline.runs.storage import write_bytes
from shards import ShardError

MAX_SHOWN = 10


@dataclass(frozen=True)
class Weights:
    """A model that can be sent to another process, by Ray's object store.

    Attributes:
        card: The text of its card.
        tensors: Its weights by name, NumPy arrays on the CPU.
        settings: The settings that it was loaded with.
        code: The folders that the model's own code is imported from; empty if it has none.
    """

    card: str
    tensors: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    code: tuple[str, ...] = ()

    def predictor(self) -> Predictor:
        """Return the model, ready for media."""
        import sys

        sys.path.extend(each for each in self.code if each not in sys.path)
        return Predictor(
            ModelCard.from_json(self.card),
            {name: torch.from_numpy(np.array(value)) for name, value in self.tensors.items()},
            decode_seconds=self.settings["decode_seconds"],
            decode_memory_mib=self.settings["decode_memory_mib"],
            strict=self.settings["strict"],
            sandbox=self.settings["sandbox"],
        )


def part_name(part: int) -> str:
    """Return the name of the file of a part."""
    return f"part-{part:06d}.parquet"


@dataclass(frozen=True)
class PartFacts:
    """What is known of a part without reading it.

    Attributes:
        part: Its number.
        inputs: The number of its inputs.
        bad: The number of those without an answer.
        shown: The names and errors of the first of these.
    """

    part: int
    inputs: int
    bad: int
    shown: list[tuple[str, str]]


def make_part(predictor: Predictor, part: int, folder: str, roots: tuple[str, ...]) -> PartFacts:
    """Predict the inputs of a part and write its file.

    Args:
        predictor: The model.
        part: The number of the part.
        folder: The folder of the predictions, with the plan.
        roots: Where objects and tars lie.

    Raises:
        UserError, ShardError: Files cannot be decoded here, or the part cannot be written.
    """
    target = folder_at(folder)
    inputs = read_plan(target, part)
    predictions = [each for some in predict_inputs(predictor, iter(inputs), roots) for each in some]
    kind = type(predictor.card.objective).prediction
    write_bytes(target / part_name(part), encode_predictions(predictions, ".parquet", kind))
    return facts_of(part, [(each.source, each.error) for each in predictions])


def facts_of(part: int, answers: Sequence[tuple[str, str | None]]) -> PartFacts:
    """Return the facts of a part by the sources and errors of its answers."""
    bad = [(source, error) for source, error in answers if error is not None]
    return PartFacts(part, len(answers), len(bad), bad[:MAX_SHOWN])


class PartActor:
    """Makes parts in a process of Ray Data, with the model loaded once.

    Args:
        model: A reference to the `Weights` in Ray's object store.
        folder: As for `make_part`.
        roots: As for `make_part`.
        threads: The number of threads of torch.
    """

    def __init__(self, model: Any, folder: str, roots: tuple[str, ...], threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        self._predictor = ray.get(model).predictor()
        self._folder, self._roots = folder, roots

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make one part. An error that a user can mend is returned, because Ray wraps others."""
        part = int(batch["part"][0])
        facts, error = "", ""
        try:
            made = make_part(self._predictor, part, self._folder, self._roots)
            facts = json.dumps(asdict(made))
        except (UserError, ShardError) as failed:
            error = str(failed)
        return {"facts": np.array([facts], object), "error": np.array([error], object)}
