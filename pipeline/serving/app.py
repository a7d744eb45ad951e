"""The web application: MLflow's own requests and answers, a page, health and metrics."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.serving.invocations import FAILED, AskedModel
from pipeline.serving.limits import App, Limited, Message, Receive, Send, refusal
from pipeline.serving.metrics import Metrics
from pipeline.serving.page import Page
from pipeline.serving.questions import Answer, Question
from pipeline.serving.remote_predictor import RemotePredictor

AT_ONCE = 64
"""The most requests that are worked on."""
WAITING = 256
"""So many requests wait at most. Others get the status 503."""
HEALTH_SECONDS = 5.0


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        model_uri: The model's version, `models:/NAME/VERSION` or `runs:/RUN/model`.
        tracking_uri: The tracking server that has it.
        max_body: The largest body of a request, in bytes.
        seconds: The most time for a request.
    """

    model_uri: str
    tracking_uri: str
    max_body: int
    seconds: float


class WebApp:
    """An ASGI application that answers for one model.

    Args:
        served: What is served.
        ask: Asks the model one question.
        ready: Returns when the model answers.
    """

    def __init__(
        self,
        served: Served,
        ask: Callable[[Question], Awaitable[Answer]],
        ready: Callable[[], Awaitable[Any]],
    ) -> None:
        import mlflow

        mlflow.set_tracking_uri(served.tracking_uri)
        loaded = mlflow.pyfunc.load_model(served.model_uri)
        python_model = loaded.unwrap_python_model()
        card = python_model.predictor.card
        # The weights are where the questions are answered.
        python_model.predictor = RemotePredictor(
            card, self._counted, lambda: self._loop, served.seconds
        )
        self._served, self._ask, self._ready = served, ask, ready
        self._model = AskedModel(loaded, card.objective)
        self._metrics, self._page = Metrics(), Page(served.model_uri, card)
        self._loop: Any = None
        app = Starlette(
            routes=[
                Route("/", self._show_page),
                Route("/invocations", self._invocations, methods=["POST"]),
                Route("/health", self._health),
                Route("/ping", self._health),
                Route("/metrics", self._show_metrics),
                Route("/version", self._show_version),
            ],
            exception_handlers={HTTPException: _not_served, Exception: _failed},
        )
        self._app: App = Limited(
            app,
            most=AT_ONCE + WAITING,
            max_body=served.max_body,
            seconds=served.seconds,
            observe=self._metrics.request,
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request, or the start and the end of the server."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            # A request waits for its answers in a thread.
            self._loop.set_default_executor(ThreadPoolExecutor(AT_ONCE))
        await self._app(scope, receive, send)

    async def _invocations(self, request: Request) -> Response:
        body, kind = await request.body(), request.headers["content-type"]
        seconds = self._served.seconds
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.to_thread(self._model.respond, body, kind)
        except TimeoutError:
            return refusal(504, "DEADLINE_EXCEEDED", f"no answer within {seconds:g} s")

    async def _counted(self, question: Question) -> Answer:
        self._metrics.asked()
        try:
            answer = await self._ask(question)
        finally:
            self._metrics.ended()
        usable = answer.prediction is not None and answer.prediction.error is None
        self._metrics.answered(usable=usable, batch=answer.batch)
        return answer

    async def _show_page(self, _request: Request) -> Response:
        return HTMLResponse(self._page.html, headers=self._page.headers)

    async def _show_metrics(self, _request: Request) -> Response:
        from prometheus_client import CONTENT_TYPE_LATEST

        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _show_version(self, _request: Request) -> Response:
        from mlflow.version import VERSION

        return Response(VERSION, media_type="application/json")  # as MLflow's server

    async def _health(self, _request: Request) -> Response:
        """Answer whether the model answers."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._ready()
        except Exception as error:  # Ray raises many kinds
            reason = type(error).__name__
            return JSONResponse({"status": f"no replica answers ({reason})"}, status_code=503)
        return JSONResponse({"status": "ok", "model": self._served.model_uri})


async def _not_served(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = refusal(error.status_code, "ENDPOINT_NOT_FOUND", error.detail)
    response.headers.update(error.headers or {})
    return response


async def _failed(_request: Request, _error: Exception) -> Response:
    """Answer without a trace of the error, which Ray logs."""
    return refusal(500, "INTERNAL_ERROR", FAILED)
