"""What tests run inside a sandbox to see what is around it, and to forge its answers."""

import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandbox_escapes import pipe_to_parent, read_byte


def surroundings(settings: dict[str, Any]) -> Callable:
    """For the sandbox: what is in its environment, and which descriptors are open."""
    return _surroundings


def _surroundings(parts: dict, values: dict[str, Any]) -> Iterator[dict[str, bytes]]:
    open_files = []
    for number in range(256):
        try:
            kind = os.fstat(number).st_mode
        except OSError:
            continue
        open_files.append(f"{number}:{'pipe' if kind & 0o170000 == 0o010000 else oct(kind)}")
    yield {
        "environment": "\n".join(os.environ).encode(),
        "descriptors": "\n".join(open_files).encode(),
        "folder": str(Path.cwd()).encode(),
    }


def threads(settings: dict[str, Any]) -> Callable:
    """For the sandbox: starts threads, and gives what they found."""
    return _threads


def _threads(parts: dict, values: dict[str, Any]) -> Iterator[dict[str, bytes]]:
    found: list[str] = []

    def read() -> None:
        try:
            read_byte("/etc/passwd")
            found.append("escaped")
        except OSError as error:
            found.append(errno.errorcode[error.errno or 0])

    workers = [threading.Thread(target=read) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    yield {"found": " ".join(found).encode()}


def early_thread(settings: dict[str, Any]) -> Callable:
    """For the sandbox: starts a thread at once, which tries a socket when a file comes."""
    begin, found = threading.Event(), []

    def connect() -> None:
        begin.wait()
        try:
            socket.socket(socket.AF_UNIX).close()
            found.append("escaped")
        except OSError as error:
            found.append(errno.errorcode[error.errno or 0])

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()

    def decode(parts: dict, values: dict[str, Any]) -> Iterator[dict[str, bytes]]:
        begin.set()
        thread.join()
        yield {"found": found[0].encode()}

    return decode


def forge(settings: dict[str, Any]) -> Callable:
    """For the sandbox: answers by itself, around the protocol, with what `values` asks for."""
    return _forge


def _forge(parts: dict, values: dict[str, Any]) -> Iterator[dict[str, bytes]]:
    if values["forged"] == "nothing":
        yield {"ok": b""}
        return
    text = _ANSWERS[values["forged"]]
    length = 1 << 31 if values["forged"] == "a long header" else len(text)
    os.write(pipe_to_parent(), struct.pack("<I", length) + text)
    time.sleep(60)


def _sample(**changes: object) -> bytes:
    header = {"kind": "sample", "names": ["x"], "sizes": [1], "shared": False}
    return json.dumps(header | changes).encode()


_ANSWERS = {
    "a long header": b"x",
    "no JSON": b"{",
    "no object": b"[]",
    "negative size": _sample(sizes=[-1]),
    "endless blob": _sample(sizes=[1 << 50]),
    "beyond the shared memory": _sample(sizes=[5 << 20], shared=True),
    "a member out of the shard": _sample(names=["../../x"]),
    "two members of one name": _sample(names=["x", "x"], sizes=[0, 0]),
    "a name that is none": _sample(names=[7]),
    "a kind that is none": _sample(kind="other"),
    "much text": json.dumps(
        {
            "kind": "refused", "reason": "x" * 100_000, "trace": "y\n" * 10_000,
            "sizes": [], "shared": False,
        }
    ).encode(),
    "deep JSON": b"[" * 200_000,
    "escape codes": json.dumps(
        {
            "kind": "refused", "reason": "\x1b]0;title\x07\x1b[2Jgone\n", "trace": "\x1b[2J",
            "sizes": [], "shared": False,
        }
    ).encode(),
}  # fmt: skip
