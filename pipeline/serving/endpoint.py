"""The two deployments of Ray Serve: copies of the model, and the web application before them."""

import asyncio
from typing import Any

from ray import serve

from pipeline.registry.predict_part import Weights
from pipeline.serving.app import AT_ONCE, Served, WebApp
from pipeline.serving.questions import Answer, Question, answers

WAITING = 256
"""So many requests wait at most. Others get the status 503."""
BATCH_WAIT_SECONDS = 0.01
"""A batch waits so long for more inputs."""


@serve.deployment
class Model:
    """One copy of the model, which answers the inputs of several requests together.

    Args:
        model: The model.
        max_batch: The most inputs that are answered together.
    """

    def __init__(self, model: Weights, max_batch: int) -> None:
        self._predictor = model.predictor()
        self.answer.set_max_batch_size(max_batch)

    @serve.batch(batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def answer(self, questions: list[Question]) -> list[Answer]:
        """Answer questions that came at about the same time."""
        return await asyncio.to_thread(answers, self._predictor, questions)

    async def ready(self) -> bool:
        """Return that the copy runs."""
        return True


@serve.deployment(max_ongoing_requests=AT_ONCE, max_queued_requests=WAITING)
@serve.ingress()
class Endpoint:
    """The web application.

    Args:
        served: What is served.
        model: The handle of the copies of the model.
    """

    def __init__(self, served: Served, model: Any) -> None:
        self._app = WebApp(served, model.answer.remote, model.ready.remote)

    def __serve_build_asgi_app__(self) -> WebApp:
        """Return the web application."""
        return self._app
