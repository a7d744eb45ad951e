"""A parent process watches a command, so that every end of the command is reported in one line.

Ray's native code ends its driver silently when the agent or raylet of the machine dies. The system
kills a process that takes too much memory. Native code can crash. So a verb that starts engines
runs in a child process, which reports through a pipe how it ended. If it could not, the parent
prints the line.

The child has its own process group, and gets each signal once, from its parent. It dies with its
parent (Linux only).
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCONT)
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_PR_SET_PDEATHSIG = 1
_FAILED = 1
_SHOW_CURSOR = "\x1b[?25h"
_pipe: int | None = None


def watched(verb: str, work: Callable[[], int]) -> int:
    """Run a verb in a child process, and return its exit status, in the child and in the parent.

    If this process already has threads, or the system cannot fork, the verb runs here.

    Args:
        verb: The name of the verb, for the line.
        work: The function that does the work, reports every end that it sees, and returns the
            status.
    """
    global _pipe
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return work()
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # A signal that arrives before it can be passed on waits until then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(reader)
        os.setpgid(0, 0)
        _die_with(parent)
        _pipe = writer
        status = work()
        _send(f"end {status}")
        return status
    os.close(writer)
    with contextlib.suppress(OSError):  # the child does the same; either may come first
        os.setpgid(child, child)
    with _signals_passed_on(child):
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _, code = os.waitpid(child, 0)
    return _read_end(verb, _read(reader), code)


def report_log(path: Path) -> None:
    """Report the path of the log file to the parent, if there is one."""
    _send(f"log {path}")


def _send(line: str) -> None:
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe, os.fsencode(line.replace("\n", " ") + "\n"))


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has died in the meantime
            os._exit(_FAILED)


@contextlib.contextmanager
def _signals_passed_on(child: int) -> Iterator[None]:
    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    def pause(number: int, _: FrameType | None) -> None:
        """Handle Ctrl-Z: stop the child's group and this process until the shell continues them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGCONT)

    handlers: dict[int, Any] = dict.fromkeys(_PASSED_ON, pass_on)
    handlers[signal.SIGTSTP] = pause
    # Signals that the caller ignores (nohup, a background script) stay ignored, also in the child.
    kept = {n: signal.getsignal(n) for n in handlers}
    set_here = [n for n, handler in kept.items() if handler is not signal.SIG_IGN]
    for number in set_here:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in set_here:
            signal.signal(number, kept[number] or signal.SIG_DFL)


def _read(reader: int) -> list[str]:
    """Read the child's lines without waiting: its own children may keep the pipe open longer."""
    os.set_blocking(reader, False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 65536):
            received += part
    os.close(reader)
    return os.fsdecode(received).splitlines()


def _read_end(verb: str, lines: list[str], code: int) -> int:
    """Return the exit status by the child's lines and the system; print a missing line."""
    ends = [int(line.removeprefix("end ")) for line in lines if line.startswith("end ")]
    logs = [line.removeprefix("log ") for line in lines if line.startswith("log ")]
    status = os.waitstatus_to_exitcode(code)
    if ends:
        # A crash while the interpreter shuts down does not change the result of the work.
        return ends[-1] if status < 0 else status
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
    sys.stderr.write("\n")  # the dead process may have left a bar on its line
    log = f"; log: {logs[-1]}" if logs else ""
    print(f"perceiver {verb}: {_what_happened(status)}; {_GOES_ON}{log}", file=sys.stderr)
    return 128 - status if status < 0 else status or _FAILED


_GOES_ON = "the same command goes on from what is done"


def _what_happened(status: int) -> str:
    if status >= 0:
        return (
            f"was ended from within (status {status}), as Ray does when its raylet or agent on "
            "this machine has died or was killed"
        )
    name = signal.Signals(-status).name
    if -status == signal.SIGKILL:
        return f"was killed ({name}), by the system for want of memory or by hand"
    if -status in _CRASHES:
        return f"crashed in native code ({name})"
    return f"was ended by {name}"
