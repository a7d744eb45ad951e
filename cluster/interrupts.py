"""Turn SIGINT (Ctrl-C), SIGTERM (job managers, `kill`) and SIGHUP into exceptions."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Never


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived. Code that ends cleanly on Ctrl-C also ends cleanly on this.

    Attributes:
        number: The number of the signal.
        done: What was done before the end, for the user; may be empty.
    """

    def __init__(self, number: int = signal.SIGTERM, done: str = "") -> None:
        super().__init__(number, done)
        self.number, self.done = number, done

    @property
    def name(self) -> str:
        """The name of the signal, such as `SIGTERM`."""
        return signal.Signals(self.number).name


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `Terminated` in the main thread.

    SIGINT raises `KeyboardInterrupt`, as usual. SIGHUP stays ignored if the caller ignores it
    (`nohup`). Ray's native code replaces an exception from a signal handler with a plain
    `KeyboardInterrupt`; it leaves the block as the original `Terminated`.
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
    """Restore the handlers of SIGINT and SIGTERM after the block, because Ray sets its own."""
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
    """Delay SIGINT until the end of the block."""
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
