"""What an endpoint asks a model, and how several questions are answered together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.media.sandbox.sandbox import SandboxError
from pipeline.registry.served.inference import Predictor
from pipeline.registry.served.requests import MediaSource
from pipeline.training.objectives import Objective, Prediction


@dataclass(frozen=True)
class Question:
    """One input of a request.

    Attributes:
        item: The input. It is never a path.
        objective: Another objective to answer by, as with another threshold; None for the model's.
        attention: Whether to answer where the latents look, too.
    """

    item: MediaSource
    objective: Objective | None = None
    attention: bool = False


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        prediction: The prediction; None if nothing can be decoded on this machine.
        views: Where the latents look, by modality, if that was asked and the input can be used.
        batch: The number of questions that were answered together, for the first of them; else 0.
        error: Why nothing can be decoded here.
    """

    prediction: Prediction | None
    views: dict[str, Any] | None = None
    batch: int = 0
    error: str = ""


def answers(predictor: Predictor, questions: Sequence[Question]) -> list[Answer]:
    """Answer questions together, as far as they are of one kind."""
    groups: list[tuple[Question, list[int]]] = []
    for number, question in enumerate(questions):
        for first, numbers in groups:
            same = first.attention == question.attention
            if same and first.objective == question.objective:
                numbers.append(number)
                break
        else:
            groups.append((question, [number]))
    found: dict[int, Answer] = {}
    for first, numbers in groups:
        items = [questions[number].item for number in numbers]
        found |= zip(numbers, _of_one_kind(predictor, first, items), strict=True)
    return [found[number] for number in range(len(questions))]


def _of_one_kind(predictor: Any, first: Question, items: list[MediaSource]) -> list[Answer]:
    if first.objective is not None:
        predictor = predictor.with_objective(first.objective)
    sizes = [len(items), *[0] * (len(items) - 1)]
    try:
        if first.attention:
            pairs = predictor.predict_with_attention(items)
        else:
            pairs = [(each, None) for each in predictor.predict(items)]
    except SandboxError as error:
        return [Answer(None, None, size, str(error)) for size in sizes]
    return [
        Answer(prediction, views, size)
        for (prediction, views), size in zip(pairs, sizes, strict=True)
    ]
