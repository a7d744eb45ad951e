"""The web application: MLflow's own requests and answers, a page, health and metrics."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.serving.limits import App, Limited, Message, Receive, Send, refuse
from pipeline.serving.metrics import Metrics
from pipeline.serving.page import Page
from pipeline.serving.questions import Answer, Question
from pipeline.serving.remote_predictor import RemotePredictor

AT_ONCE = 64
"""The most requests that are worked on."""
HEALTH_SECONDS = 5.0
_NOT_SERVED = ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/health", "/ping")


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
        from mlflow.pyfunc.scoring_server import init

        os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(max(1, int(served.seconds)))
        mlflow.set_tracking_uri(served.tracking_uri)
        loaded = mlflow.pyfunc.load_model(served.model_uri)
        python_model = loaded.unwrap_python_model()
        card = python_model.predictor.card
        # The weights are where the questions are answered.
        python_model.predictor = RemotePredictor(card, self._counted, lambda: self._loop)
        self._served, self._ask, self._ready = served, ask, ready
        self._metrics, self._page = Metrics(), Page(served.model_uri, card)
        self._loop: Any = None
        app = init(loaded)
        app.router.routes[:] = [
            route for route in app.router.routes if getattr(route, "path", "") not in _NOT_SERVED
        ]
        app.add_api_route("/", self._show_page, methods=["GET"])
        app.add_api_route("/metrics", self._show_metrics, methods=["GET"])
        for path in ("/health", "/ping"):
            app.add_api_route(path, self._health, methods=["GET"])
        app.add_exception_handler(RecursionError, _too_deep)
        self._app: App = Limited(
            app,
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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if begun:
                raise
            # A client gets no trace of the error.
            line = "the server failed; its log says why"
            await refuse(send, 500, "INTERNAL_ERROR", line)

    async def _counted(self, question: Question) -> Answer:
        self._metrics.asked()
        try:
            answer = await self._ask(question)
        finally:
            self._metrics.ended()
        usable = answer.prediction is not None and answer.prediction.error is None
        self._metrics.answered(usable=usable, batch=answer.batch)
        return answer

    async def _show_page(self) -> Any:
        from starlette.responses import HTMLResponse

        return HTMLResponse(self._page.html, headers=self._page.headers)

    async def _show_metrics(self) -> Any:
        from prometheus_client import CONTENT_TYPE_LATEST
        from starlette.responses import Response

        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _health(self) -> Any:
        """Answer whether the model answers."""
        from starlette.responses import JSONResponse

        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._ready()
        except Exception as error:  # Ray raises many kinds
            reason = type(error).__name__
            return JSONResponse({"status": f"no replica answers ({reason})"}, status_code=503)
        return JSONResponse({"status": "ok", "model": self._served.model_uri})


async def _too_deep(_request: Any, _error: Exception) -> Any:
    """Answer a body that MLflow's reader fails on."""
    from starlette.responses import JSONResponse

    line = "the JSON is nested too deep"
    return JSONResponse({"error_code": "BAD_REQUEST", "message": line}, status_code=400)
