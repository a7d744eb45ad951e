"""A web server on the loopback that serves a folder, knows ranges, counts, and fails on demand."""

import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

Failure = Callable[[str, int], int | None]
"""Path and how often it was asked for, to an HTTP status to refuse with, 0 to break off in the
middle, -1 to give half as if it were all, or None to answer."""


class ShardServer:
    """Serves `folder` while its `with` block lasts.

    Attributes:
        requests: GET requests for each path within the folder.
        bytes_sent: of bodies, for each path.
        fails: decides which requests fail.
        delays: called before a tar's bytes are sent, with their number.
        admits: told a request's path with its query and headers, decides whether it is answered.
        knows_ranges: false answers every request with the whole file.
        is_closed: set when the block is left; connections that are still open get no answers.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[str] = Counter()
        self.bytes_sent: Counter[str] = Counter()
        self.fails: Failure = lambda path, times: None
        self.delays: Callable[[int], object] = lambda size: None
        self.admits: Callable[[str, dict[str, str]], bool] = lambda path, headers: True
        self.knows_ranges = True
        self.is_closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, folder))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_closed = True
        self._server.shutdown()
        self._server.server_close()

    def tar_requests(self) -> int:
        """Requests for tars so far."""
        return sum(count for path, count in self.requests.items() if path.endswith(".tar"))


def _handler(server: ShardServer, folder: Path) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:  # http.server's name
            if server.is_closed:
                self.close_connection = True
                return
            if not server.admits(self.path, dict(self.headers)):
                self._answer(403, b"", {})
                return
            name = unquote(self.path.lstrip("/").partition("?")[0])
            with lock:
                server.requests[name] += 1
                times = server.requests[name]
            failure = server.fails(name, times)
            if failure and failure > 0:
                self._answer(failure, b"", {})
                return
            try:
                data = (folder / name).read_bytes()
            except OSError:
                self._answer(404, b"", {})
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            status, headers = 200, {}
            if asked and server.knows_ranges:
                first, last = map(int, asked.groups())
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                status, data = 206, data[first : last + 1]
            data = data[: len(data) // 2] if failure == -1 else data
            if name.endswith(".tar"):
                server.delays(len(data))
            self._answer(status, data, headers, cut=failure == 0)
            with lock:
                server.bytes_sent[name] += len(data)

        def _answer(
            self, status: int, body: bytes, headers: dict[str, str], cut: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # quiet
            del format, args

    return Handler
