"""A proxy in front of an HTTP server: each answer comes later, and at the speed of a link.

It runs as a process: `python latency_proxy.py TASK`, with the port of the server, the seconds that
are added to each request, and the bytes per second of the link (0: no limit). It prints its own
port, and ends when its standard input does. A GET of `COUNTS` returns the requests and the bytes of
bodies since the last such GET.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass

COUNTS = "/-/counts"
_BLOCK_BYTES = 1 << 16
_END_OF_HEAD = b"\r\n\r\n"


@dataclass
class Link:
    """The network between the clients and the server. All connections share its speed."""

    server_port: int
    latency: float
    bytes_per_second: float
    requests: int = 0
    num_bytes: int = 0
    free_at: float = 0.0

    async def carry(self, size: int) -> None:
        """Wait until `size` bytes have crossed the link."""
        self.num_bytes += size
        if self.bytes_per_second:
            now = time.monotonic()
            self.free_at = max(self.free_at, now) + size / self.bytes_per_second
            await asyncio.sleep(self.free_at - now)

    def counts(self) -> bytes:
        """Return the counts in JSON, and start again from 0."""
        found = json.dumps({"requests": self.requests, "bytes": self.num_bytes}).encode()
        self.requests = self.num_bytes = 0
        return found


@dataclass(frozen=True)
class _Head:
    """The first lines of a request or an answer: the start line, and its other lines."""

    start: str
    lines: tuple[str, ...]

    def field(self, name: str) -> str:
        """Return the value of a header, or an empty text."""
        found = [line for line in self.lines if line.lower().startswith(f"{name.lower()}:")]
        return found[0].partition(":")[2].strip() if found else ""

    def encode(self, connection: str) -> bytes:
        kept = [line for line in self.lines if not line.lower().startswith("connection:")]
        return "\r\n".join([self.start, *kept, f"Connection: {connection}", "", ""]).encode(
            "latin1"
        )


async def _serve(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await _read_head(reader):
            if head.start.split(" ")[1] == COUNTS:
                body = link.counts()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
                continue
            await _forward(link, head, reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client has gone
    finally:
        writer.close()


async def _forward(
    link: Link, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    link.requests += 1
    if head.field("Expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(head.field("Content-Length") or 0))
    await asyncio.sleep(link.latency)
    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", link.server_port)
    try:
        server_writer.write(head.encode("close") + body)
        answer = await _read_head(server_reader)
        while answer and answer.start.split(" ")[1] == "100":
            answer = await _read_head(server_reader)
        if answer is None:
            raise ConnectionError("the server ended the connection")
        length = answer.field("Content-Length")
        has_body = not head.start.startswith("HEAD ")
        if has_body and not length:  # of unknown length: it is short, so it is read whole
            rest = await server_reader.read()
            writer.write(answer.encode("close") + rest)
            raise ConnectionError("the end of the connection is the end of the answer")
        writer.write(answer.encode("keep-alive"))
        left = int(length or 0) if has_body else 0
        while left:
            block = await server_reader.read(min(left, _BLOCK_BYTES))
            if not block:
                raise ConnectionError("the server ended the connection")
            await link.carry(len(block))
            writer.write(block)
            await writer.drain()
            left -= len(block)
        await writer.drain()
    finally:
        server_writer.close()


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    try:
        data = await reader.readuntil(_END_OF_HEAD)
    except asyncio.IncompleteReadError:
        return None
    start, *lines = data[: -len(_END_OF_HEAD)].decode("latin1").split("\r\n")
    return _Head(start, tuple(lines))


async def main(link: Link) -> None:
    """Serve until the standard input ends."""
    server = await asyncio.start_server(
        lambda reader, writer: _serve(link, reader, writer), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # open connections are not waited for


if __name__ == "__main__":
    asyncio.run(main(Link(**json.loads(sys.argv[1]))))
