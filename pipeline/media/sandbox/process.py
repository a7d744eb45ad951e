"""The parent's side of the sandbox: the child process, its two pipes and the shared memory.

Messages from the child are not trusted, because an attacker may control it.
"""

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.media.sandbox.child import (
    HEADER_LENGTH,
    PIPE_BYTES,
    SHARED_BYTES,
    halves,
    message,
    shared_blobs,
)

START_SECONDS = 120.0
WALL_PER_CPU = 4.0
"""A child may take this many times its processor seconds in wall-clock time."""

MAX_HEADER_BYTES = 16 << 20
MAX_REASON_LENGTH, MAX_TRACE_LINES = 2000, 200
MALFORMED = "the decoder's answer is malformed"
_MEMBER = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUSERBASE")


class SandboxError(RuntimeError):
    """The child cannot work on any file: a defect, a missing package or too little memory.

    The text is one line.
    """


class ChildDiedError(Exception):
    """The child ended or ran out of memory. The text is the reason for the current file."""


class Child:
    """The child process, its two pipes and the memory that it shares."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._most_bytes = settings["memory_bytes"]
        try:
            with _memory() as memory:
                self._shared_requests, self._shared_answers = halves(memory)
                settings = {**settings, "memory": memory}
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "pipeline.media.sandbox.child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=[memory],
                    env=_environment(),
                )
        except OSError as error:  # out of memory, processes or files: not the sample's fault
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
        except (ChildDiedError, TimeoutError) as error:
            self.kill()
            raise SandboxError(f"{settings['function']}: no child started: {error}") from None
        if header["kind"] != "ready":
            self.kill()
            raise broken(settings["function"], header)
        # The child sent this before it read any file, so it can be trusted.
        self.layers: dict[str, list[str]] = header["layers"]
        self.missing: dict[str, str] = header["missing"]

    def send(self, header: dict[str, Any], blobs: list[bytes], seconds: float) -> None:
        """Send one request. Raises TimeoutError. If the child ended, `receive` reports it."""
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
            pass  # the child may have sent the reason

    def receive(self, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        """Receive one message: header and blobs. Raises TimeoutError and ChildDiedError."""
        allowance = _Allowance(self.pid, seconds)
        (length,) = HEADER_LENGTH.unpack(self._take(HEADER_LENGTH.size, allowance))
        if length > MAX_HEADER_BYTES:
            raise ChildDiedError(MALFORMED)
        header, sizes, is_shared = _parsed(self._take(length, allowance))
        if sum(sizes) > (SHARED_BYTES if is_shared else self._most_bytes):
            raise ChildDiedError(MALFORMED)
        if is_shared:
            return header, shared_blobs(self._shared_answers, sizes)
        return header, [self._take(size, allowance) for size in sizes]

    def _take(self, count: int, allowance: "_Allowance") -> bytes:
        taken = []
        while count > 0:
            if not self._rest:
                allowance.wait(self._readable)
                self._rest = memoryview(self._buffer)[: os.readv(self._from, [self._buffer])]
                if not self._rest:
                    raise ChildDiedError(self._how_it_died())
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
        """Kill the process and all processes that it started, and wait for it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # the child leads its own process group
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def _memory() -> Iterator[int]:
    """Create an unnamed file that both processes can map, in memory if the system supports it."""
    if sys.platform == "linux":
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        file: IO[bytes] = os.fdopen(os.memfd_create("perceiver-sandbox", flags), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # the with below closes it
    with file:
        file.truncate(2 * SHARED_BYTES)
        if sys.platform == "linux":  # if the child truncated the file, the parent would crash
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        yield file.fileno()


def _environment() -> dict[str, str]:
    """Return the variables that an interpreter needs to start and to find these packages."""
    root = str(Path(__file__).resolve().parents[3])
    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {
        **{name: os.environ[name] for name in _NEEDED if name in os.environ},
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([root, *map(os.path.abspath, paths)]),
    }


def _parsed(text: bytes) -> tuple[dict[str, Any], list[int], bool]:
    """Parse the header of an answer, which may be hostile.

    Returns:
        The header, the sizes of the blobs, and whether the blobs are in shared memory.

    Raises:
        ChildDiedError: The header is malformed.
    """
    try:
        header = json.loads(text)
        sizes, is_shared = header.pop("sizes"), header.pop("shared")
        fits = isinstance(is_shared, bool) and isinstance(sizes, list)
        fits = fits and all(type(size) is int and size >= 0 for size in sizes)
        match header["kind"]:
            case "sample":
                names = header["names"]
                fits = fits and len(set(names)) == len(names) == len(sizes)
                fits = fits and all(_MEMBER.fullmatch(name) for name in names)
            case "refused" | "broken":
                header["reason"] = _printable(header["reason"])
                lines = header["trace"].splitlines()
                header["trace"] = "\n".join(map(_printable, lines[:MAX_TRACE_LINES]))
            case kind:
                fits = fits and kind in ("ready", "done", "memory")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ChildDiedError(MALFORMED) from None
    if not fits:
        raise ChildDiedError(MALFORMED)
    return header, sizes, is_shared


def _printable(text: str) -> str:
    """Return a line without characters that control a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text[:MAX_REASON_LENGTH])


def broken(function: str, header: dict[str, Any]) -> SandboxError:
    """Return the error for a child that reports a defect, with the calls that led to it."""
    where = ", ".join(header["trace"].splitlines())
    return SandboxError(f"{function}: {header['reason']}" + (f" ({where})" if where else ""))


class _Allowance:
    """The time for one message, counted in the child's processor seconds.

    On a busy machine, a file takes longer in wall-clock time and must not be rejected for that.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._started = time.monotonic()
        self._cpu_at_first_look: float | None = None

    def wait(self, pipe: select.poll) -> None:
        """Wait until the pipe is ready. Raises TimeoutError when the time is over."""
        while not pipe.poll(100 * self._seconds):  # in ms: wakes up ten times
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
    """Enlarge a pipe so that it can hold a whole sample, if the system allows it."""
    if sys.platform == "linux":
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except PermissionError:
            return  # the user has reached the limit for pipes; a small pipe is only slower
