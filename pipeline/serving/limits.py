"""Limits and headers around a web application: requests, bodies, and what browsers may do."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse, Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Limited:
    """An ASGI application that reads a body before the application sees it, up to a limit.

    Args:
        app: The application.
        most: The most requests with a body at once. Others are never too many.
        max_body: The largest body, in bytes.
        seconds: The most time for a body to come.
        observe: Is told the path, the status and the seconds of each request.
    """

    def __init__(
        self,
        app: App,
        *,
        most: int,
        max_body: int,
        seconds: float,
        observe: Callable[[str, int, float], None],
    ) -> None:
        self._app, self._max_body, self._seconds = app, max_body, seconds
        self._observe, self._most, self._now = observe, most, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        begun, status = loop.time(), 500

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message.get("headers", ())}
                more = [(name, value) for name, value in HEADERS if name not in given]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            await self._counted(scope, receive, with_headers)
        finally:
            self._observe(scope["path"], status, loop.time() - begun)

    async def _counted(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._handle(scope, receive, send)
            return
        if self._now >= self._most:
            line = f"{self._now} requests are worked on or wait; send this one again later"
            refused = refusal(503, "TEMPORARILY_UNAVAILABLE", line, close=True)
            await refused(scope, receive, send)
            return
        self._now += 1
        try:
            await self._handle(scope, receive, send)
        finally:
            self._now -= 1

    async def _handle(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await self._body(scope, receive)
        if isinstance(body, Response):
            await body(scope, receive, send)
            return
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return given.pop() if given else await receive()

        await self._app(scope, replay, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | Response:
        """Return the whole body, or why there is none."""
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        too_large = refusal(
            413, "REQUEST_LIMIT_EXCEEDED", f"a body of more than {self._max_body} bytes", close=True
        )
        if not declared.isdigit():
            return refusal(400, "BAD_REQUEST", "content-length is no number", close=True)
        if int(declared[:20]) > self._max_body:
            return too_large
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._received(receive)
        except TimeoutError:
            line = f"no whole body within {self._seconds:g} s"
            return refusal(408, "BAD_REQUEST", line, close=True)
        if body is None:
            return too_large
        if scope["method"] == "POST" and b"content-type" not in headers:
            return refusal(415, "BAD_REQUEST", "the header content-type is missing")
        return body

    async def _received(self, receive: Receive) -> bytes | None:
        """Return the whole body; None if it is too large."""
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(parts)  # the client has gone
            parts += message.get("body", b"")
            if len(parts) > self._max_body:
                return None
            if not message.get("more_body"):
                return bytes(parts)


def refusal(status: int, code: str, line: str, *, close: bool = False) -> Response:
    """Return a refusal in the form of MLflow's errors, an ASGI application.

    Args:
        status: The status of HTTP.
        code: MLflow's name of the kind of error.
        line: What the client is told.
        close: Whether to close the connection, because the request was not read.
    """
    headers = {"connection": "close"} if close else None
    return JSONResponse({"error_code": code, "message": line}, status, headers)
