"""Ending on request: SIGINT (Ctrl-C) and SIGTERM (job managers, ``kill``) as exceptions."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Never


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever ends well on Ctrl-C ends as well on this."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` in the main thread, as SIGINT does `KeyboardInterrupt`."""
    with _handler(signal.SIGTERM, _terminate):
        yield


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
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
def interrupt_after() -> Iterator[None]:
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


def _terminate(_number: int, _frame: FrameType | None) -> Never:
    raise Terminated
