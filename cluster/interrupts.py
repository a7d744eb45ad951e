"""Ending on request: SIGINT (Ctrl-C), SIGTERM (job managers, `kill`), SIGHUP as exceptions."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Never


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came; whatever ends well on Ctrl-C ends as well on this.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """Of the signal, such as `SIGTERM`."""
        return signal.Signals(self.number).name


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated` in the main thread.

    So does SIGINT `KeyboardInterrupt`. A SIGHUP that the caller ignores (`nohup`) is ignored.
    Ray's native code makes a plain `KeyboardInterrupt` of what a handler raises inside it; such a
    one leaves the block as the `Terminated` that it was.
    """
    came: list[int] = []

    def terminate(number: int, _frame: FrameType | None) -> Never:
        came.append(number)
        raise Terminated(number)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_handler(signal.SIGTERM, terminate))
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            stack.enter_context(_handler(signal.SIGHUP, terminate))
        try:
            yield
        except KeyboardInterrupt as error:
            if came and not isinstance(error, Terminated):
                raise Terminated(came[0]) from error
            raise


@contextlib.contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """The handlers of SIGINT and SIGTERM are afterwards what they were: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def defer_sigint() -> Iterator[None]:
    """SIGINT waits for the end of the block."""
    came: list[int] = []
    with _handler(signal.SIGINT, lambda number, _: came.append(number)):
        yield
    if came:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
