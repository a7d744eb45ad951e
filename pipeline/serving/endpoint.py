"""The two deployments of Ray Serve: copies of the model, and the web application before them."""

import asyncio
from typing import Any

from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from pipeline.registry.predict_part import Weights
from pipeline.registry.served.request_error import RequestError
from pipeline.serving.app import AT_ONCE, WAITING, Served, WebApp
from pipeline.serving.questions import Answer, Question, answers

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


# The application refuses what is too much, and answers for its health even then.
@serve.deployment(max_ongoing_requests=4 * (AT_ONCE + WAITING), max_queued_requests=WAITING)
@serve.ingress()
class Endpoint:
    """The web application.

    Args:
        served: What is served.
        model: The handle of the copies of the model.
    """

    def __init__(self, served: Served, model: Any) -> None:
        async def ask(question: Question) -> Answer:
            response = model.answer.remote(question)
            try:
                found: Answer = await response
            except asyncio.CancelledError:
                response.cancel()  # Nobody waits for it any more.
                raise
            except (RayActorError, DeploymentUnavailableError):
                line = "the copy of the model that was asked has ended; send the request again"
                raise RequestError(line, TEMPORARILY_UNAVAILABLE) from None
            return found

        self._app = WebApp(served, ask, model.ready.remote)

    def __serve_build_asgi_app__(self) -> WebApp:
        """Return the web application."""
        return self._app
