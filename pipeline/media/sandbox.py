"""Decoding of untrusted media in a child process, bounded in memory and time.

A decoder that crashes, hangs or eats memory costs one child, and gives the file a reason that is
the same on every machine.
"""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipeline.media.errors import MediaError
from pipeline.media.sandbox_child import (
    HEADER_LENGTH,
    PIPE_BYTES,
    SHARED_BYTES,
    Part,
    halves,
    message,
    shared_blobs,
)

START_SECONDS = 120.0
WALL_PER_CPU = 4.0
"""A child is given up, too, after this many times its seconds by the clock on the wall."""


class SandboxError(RuntimeError):
    """The child cannot do its work, whatever the file: a defect, a missing package or no memory.

    The text is one line.
    """


class _ChildDiedError(Exception):
    """The child is gone, or ran out of memory: ``reason`` for the file that it was at."""


class Sandbox:
    """Runs a function in a long-lived child process and streams what it yields.

    The child calls ``function(settings)`` once. What that returns it calls for every file, with
    ``(parts, values)``: it yields a dictionary of shard members, name to bytes, for every sample. A
    child that died is replaced before the next file; a file is blamed only if it also kills a child
    that has seen no other. One file at a time, from one thread at a time.

    Args:
        function: ``module:name``, imported in the child.
        settings: JSON, the same for every file.
        seconds: processor time allowed for one result.
        memory_bytes: what the child may allocate, its libraries included.
        max_requests: files after which the child is replaced, against slow leaks.
    """

    def __init__(
        self,
        function: str,
        settings: dict[str, Any],
        *,
        seconds: float = 60,
        memory_bytes: int = 2 * 1024**3,
        max_requests: int = 5000,
    ) -> None:
        self._function = function
        self._settings = settings
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._max_requests = max_requests
        self._child: _Child | None = None
        self._served = 0
        self._busy = False

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; the next :meth:`run` starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    @property
    def child_pid(self) -> int | None:
        """The child's process id, None before the first file."""
        return None if self._child is None else self._child.pid

    def run(self, parts: dict[str, Part], values: dict[str, Any]) -> Iterator[dict[str, bytes]]:
        """Decode one sample's files.

        Args:
            parts: for every field the file's bytes and its name.
            values: JSON that comes with them.

        Yields:
            One dictionary of shard members for every sample made of the files.

        Raises:
            MediaError: what the function raised, with its ``trace``; or the child crashed, took
                more than ``seconds`` for one result, or more than ``memory_bytes``.
            SandboxError: the child cannot start or lacks a package.
        """
        if self._busy:
            raise RuntimeError("the sandbox is still at another file; finish or close that first")
        self._busy = True
        delivered = 0
        try:
            while True:
                child, is_new = self._ready_child()
                try:
                    for number, members in enumerate(self._results(child, parts, values)):
                        if number == delivered:
                            delivered += 1
                            yield members
                    return
                except _ChildDiedError as error:
                    if is_new:
                        raise MediaError(str(error)) from None
        finally:
            self._busy = False

    def _ready_child(self) -> tuple["_Child", bool]:
        """The child, and whether it is new."""
        if self._served >= self._max_requests:
            self.close()
        if self._child is not None:
            self._served += 1
            return self._child, False
        self._child = _Child(
            {
                "function": self._function,
                "settings": self._settings,
                "memory_bytes": self._memory_bytes,
                "parent": os.getpid(),
            }
        )
        self._served = 1
        return self._child, True

    def _results(
        self, child: "_Child", parts: dict[str, Part], values: dict[str, Any]
    ) -> Iterator[dict[str, bytes]]:
        in_step = False
        try:
            names = [name for _, name in parts.values()]
            request = {"fields": list(parts), "names": names, "values": values}
            child.send(request, [data for data, _ in parts.values()], self._seconds)
            while True:
                header, blobs = child.receive(self._seconds)
                kind = header["kind"]
                if kind == "sample":
                    yield dict(zip(header["names"], blobs, strict=True))
                    continue
                in_step = kind in ("done", "refused")
                if kind == "refused":
                    raise MediaError(header["reason"], trace=header["trace"])
                if kind == "memory":
                    mebibytes = self._memory_bytes // 1024**2
                    raise _ChildDiedError(f"decoding took more than {mebibytes} MiB")
                if kind == "broken":
                    raise _broken(self._function, header)
                return
        except TimeoutError:
            raise MediaError(f"decoding took more than {self._seconds:g} s") from None
        finally:
            if not in_step:  # crashed, gave up, or the caller wants no more
                self.close()


class _Child:
    """The process, its two pipes and the memory that it shares."""

    def __init__(self, settings: dict[str, Any]) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            with _memory() as memory:
                self._shared_requests, self._shared_answers = halves(memory)
                settings = {**settings, "memory": memory}
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "pipeline.media.sandbox_child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                    pass_fds=[memory],
                    env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
                )
        except OSError as error:  # no memory, too many processes or files: no fault of the sample
            raise SandboxError(
                f"{settings['function']}: no child started: {error.strerror or error}"
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self.pid = self._process.pid
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)
            _widen(pipe)
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._to, select.POLLOUT)
        self._readable.register(self._from, select.POLLIN)
        self._buffer = bytearray(PIPE_BYTES)
        self._rest = memoryview(b"")
        try:
            self._write(message(settings), START_SECONDS)
            header, _ = self.receive(START_SECONDS)
        except (_ChildDiedError, TimeoutError) as error:
            self.kill()
            raise SandboxError(f"{settings['function']}: no child started: {error}") from None
        if header["kind"] != "ready":
            self.kill()
            raise _broken(settings["function"], header)

    def send(self, header: dict[str, Any], blobs: list[bytes], seconds: float) -> None:
        """Send one request. Raises TimeoutError; a child that is gone is noticed on receiving."""
        self._write(message(header, blobs, self._shared_requests), seconds)

    def _write(self, pieces: list[bytes], seconds: float) -> None:
        allowance = _Allowance(self.pid, seconds)
        try:
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    allowance.wait(self._writable)
                    left = left[os.write(self._to, left) :]
        except BrokenPipeError:
            pass  # it may have said why

    def receive(self, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        """One message: header and blobs. Raises TimeoutError and _ChildDiedError."""
        allowance = _Allowance(self.pid, seconds)
        (length,) = HEADER_LENGTH.unpack(self._take(HEADER_LENGTH.size, allowance))
        header = json.loads(self._take(length, allowance))
        sizes = header.pop("sizes")
        if header.pop("shared"):
            return header, shared_blobs(self._shared_answers, sizes)
        return header, [self._take(size, allowance) for size in sizes]

    def _take(self, count: int, allowance: "_Allowance") -> bytes:
        taken = []
        while count > 0:
            if not self._rest:
                allowance.wait(self._readable)
                self._rest = memoryview(self._buffer)[: os.readv(self._from, [self._buffer])]
                if not self._rest:
                    raise _ChildDiedError(self._how_it_died())
            taken.append(bytes(self._rest[:count]))
            self._rest = self._rest[count:]
            count -= len(taken[-1])
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _how_it_died(self) -> str:
        try:
            status = self._process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            return "the decoder closed its pipe"
        how = signal.Signals(-status).name if status < 0 else f"exit {status}"
        return f"the decoder crashed ({how})"

    def kill(self) -> None:
        """End the process, whatever it does, and wait for it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def _memory() -> Iterator[int]:
    """An unnamed file, in memory where the system has such, for both processes to map."""
    if sys.platform == "linux":
        file: IO[bytes] = os.fdopen(os.memfd_create("perceiver-sandbox"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # the with below closes it
    with file:
        file.truncate(2 * SHARED_BYTES)
        yield file.fileno()


def _broken(function: str, header: dict[str, Any]) -> SandboxError:
    """What the child said of itself, and where."""
    where = ", ".join(header["trace"].splitlines())
    return SandboxError(f"{function}: {header['reason']}" + (f" ({where})" if where else ""))


class _Allowance:
    """Time for one message, counted in the child's processor seconds.

    On a busy machine a file takes longer by the clock on the wall, and must not be refused for it.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._started = time.monotonic()
        self._cpu_at_first_look: float | None = None

    def wait(self, pipe: select.poll) -> None:
        """Return when the pipe is ready; raises TimeoutError when time is up."""
        while not pipe.poll(100 * self._seconds):  # ms: looks ten times
            cpu = self._cpu_seconds()
            if self._cpu_at_first_look is None:
                self._cpu_at_first_look = cpu
            waited = time.monotonic() - self._started
            if (
                cpu - self._cpu_at_first_look >= self._seconds
                or waited >= WALL_PER_CPU * self._seconds
            ):
                raise TimeoutError(f"nothing came for {waited:.0f} s")

    def _cpu_seconds(self) -> float:
        import psutil

        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)


def _widen(pipe: int) -> None:
    """Let a whole sample lie in a pipe, where the system allows it."""
    if sys.platform == "linux":
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except PermissionError:
            return  # a user's pipes are full; a small pipe is slower, no more
