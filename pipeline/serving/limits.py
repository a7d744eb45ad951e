"""Limits and headers around a web application: bodies, time, and what browsers may do."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

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
        max_body: The largest body, in bytes.
        seconds: The most time for a body to come.
        observe: Is told the path, the status and the seconds of each request.
    """

    def __init__(
        self, app: App, *, max_body: int, seconds: float, observe: Callable[[str, int, float], None]
    ) -> None:
        self._app, self._max_body, self._seconds = app, max_body, seconds
        self._observe = observe

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
            await self._handle(scope, receive, with_headers)
        finally:
            self._observe(scope["path"], status, loop.time() - begun)

    async def _handle(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            await refuse(send, 400, "BAD_REQUEST", "content-length is no number")
            return
        if int(declared[:20]) > self._max_body:
            await self._too_large(send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._body(receive)
        except TimeoutError:
            await refuse(send, 408, "BAD_REQUEST", f"no whole body within {self._seconds:g} s")
            return
        if body is None:
            await self._too_large(send)
            return
        if scope["method"] == "POST" and b"content-type" not in headers:
            await refuse(send, 415, "BAD_REQUEST", "the header content-type is missing")
            return
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return given.pop() if given else await receive()

        await self._app(scope, replay, send)

    async def _body(self, receive: Receive) -> bytes | None:
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

    async def _too_large(self, send: Send) -> None:
        line = f"a body of more than {self._max_body} bytes"
        await refuse(send, 413, "REQUEST_LIMIT_EXCEEDED", line)


async def refuse(send: Send, status: int, code: str, line: str) -> None:
    """Send an error in the form of MLflow's, and close the connection."""
    body = json.dumps({"error_code": code, "message": line}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
