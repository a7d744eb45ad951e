"""A predictor whose model runs in replicas. A registered model's code uses it as its own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, TEMPORARILY_UNAVAILABLE

from pipeline.media.sandbox.sandbox import SandboxError
from pipeline.registry.served.card import ModelCard
from pipeline.registry.served.request_error import RequestError
from pipeline.registry.served.requests import MediaSource
from pipeline.serving.questions import Answer, Question
from pipeline.training.objectives import Objective, Prediction


class RemotePredictor:
    """Asks replicas, from a thread of a request.

    Args:
        card: The model's card.
        ask: Asks a replica one question.
        loop: The event loop that the questions are asked in.
        seconds: The most time for the answers of a request. Then its thread is free again.
        objective: Another objective to answer by; None for the card's.
    """

    def __init__(
        self,
        card: ModelCard,
        ask: Callable[[Question], Awaitable[Answer]],
        loop: Callable[[], asyncio.AbstractEventLoop],
        seconds: float,
        objective: Objective | None = None,
    ) -> None:
        self.card = card
        self._ask, self._loop, self._seconds, self._objective = ask, loop, seconds, objective

    def with_objective(self, objective: Objective) -> "RemotePredictor":
        """Return the same, answering by another objective."""
        other = None if objective == self.card.objective else objective
        card = self.card if other is None else replace(self.card, objective=other)
        return RemotePredictor(card, self._ask, self._loop, self._seconds, other)

    def predict(self, inputs: Sequence[MediaSource]) -> list[Prediction]:
        """Predict inputs, in the given order, as `Predictor.predict` does."""
        return [prediction for prediction, _ in self._answers(inputs, attention=False)]

    def predict_with_attention(
        self, inputs: Sequence[MediaSource]
    ) -> list[tuple[Prediction, dict[str, Any] | None]]:
        """Predict inputs with where the latents look, as `Predictor.predict_with_attention`."""
        return self._answers(inputs, attention=True)

    def _answers(
        self, inputs: Sequence[MediaSource], *, attention: bool
    ) -> list[tuple[Prediction, dict[str, Any] | None]]:
        questions = [Question(item, self._objective, attention) for item in inputs]
        found: list[tuple[Prediction, dict[str, Any] | None]] = []
        for number, answer in enumerate(self._all(questions)):
            if answer.prediction is None:
                raise SandboxError(answer.error)
            kind = "row" if isinstance(inputs[number], Mapping) else "bytes"
            named: Any = replace(answer.prediction, source=f"{kind}[{number}]")  # type: ignore[type-var]  # dataclasses all
            found.append((named, answer.views))
        return found

    def _all(self, questions: Sequence[Question]) -> list[Answer]:
        async def asked() -> list[Answer]:
            tasks = [asyncio.ensure_future(self._ask(question)) for question in questions]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:  # Of a request that failed, no more is asked.
                    task.cancel()

        running = asyncio.run_coroutine_threadsafe(asked(), self._loop())
        try:
            return running.result(self._seconds)
        except TimeoutError:
            running.cancel()
            line = f"no answer within {self._seconds:g} s"
            raise RequestError(line, DEADLINE_EXCEEDED) from None
        except CancelledError:
            raise RequestError("the server ends", TEMPORARILY_UNAVAILABLE) from None
