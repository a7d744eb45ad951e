"""Notices that a training must stop soon: a signal, or a machine that is about to be taken away.

A notice reaches one process, and all processes of a training must stop at the same step. So a
notice is only kept here. The training asks for it at its step boundaries, and its processes agree.

- SIGTERM to a worker: `cluster.ray_callbacks` keeps it, instead of ending the process as Ray does.
- Ray drains the machine of a worker (`ray drain-node`, cloud autoscalers): Ray Train tells all
  workers, and `received` asks Ray Train.
- SIGTERM to the command, or a resize of the workers: `tell_workers` puts a notice into the
  key-value store of the cluster, and `listening` reads it on one worker. All trials of a study
  listen to one token.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from types import FrameType

POLL_SECONDS = 0.5
SAME_SECONDS = 1.0
_NAMESPACE = "perceiver"


class Notice(IntEnum):
    """Why a training must stop. Of several notices, the highest counts."""

    NONE = 0
    RESIZE = 1
    DRAIN = 2
    WORKER_SIGNAL = 3
    COMMAND = 4


_received = Notice.NONE


def keep(notice: Notice) -> None:
    """Keep a notice of this process."""
    global _received
    _received = max(_received, notice)


def forget() -> None:
    """Forget the notices of this process: a training begins or has ended."""
    global _received
    _received = Notice.NONE


def received() -> Notice:
    """Return the highest notice of this process so far."""
    return max(_received, Notice.DRAIN if _is_draining() else Notice.NONE)


def _is_draining() -> bool:
    """Return whether the machine of a worker of this training is about to be taken away.

    Ray Train's public function for it makes all workers wait for each other. This reads what it
    would read.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        return get_train_context().preemption_context.preemption_info is not None
    except RuntimeError:  # this process is no worker
        return False


def tell_workers(token: str, notice: Notice) -> None:
    """Send a notice to the workers that listen to this token, from anywhere on the cluster."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(f"notice-{token}", str(int(notice)), namespace=_NAMESPACE)


def is_told(token: str) -> bool:
    """Return whether a notice was sent under this token."""
    from ray.experimental.internal_kv import _internal_kv_exists

    return bool(_internal_kv_exists(f"notice-{token}", namespace=_NAMESPACE))


def confirm(token: str) -> None:
    """Say that the workers have stopped, for `wait_until_stopped`."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(f"stopped-{token}", "1", namespace=_NAMESPACE)


def is_confirmed(token: str) -> bool:
    """Return whether the workers have stopped."""
    from ray.experimental.internal_kv import _internal_kv_exists

    return bool(_internal_kv_exists(f"stopped-{token}", namespace=_NAMESPACE))


def clear(token: str) -> None:
    """Remove what was sent and confirmed under this token."""
    from ray.experimental.internal_kv import _internal_kv_del

    for name in ("notice", "stopped"):
        _internal_kv_del(f"{name}-{token}", namespace=_NAMESPACE)


@contextlib.contextmanager
def listening(tokens: Sequence[str]) -> Iterator[None]:
    """Keep what `tell_workers` sends under these tokens as notices of this process."""
    from ray.experimental.internal_kv import _internal_kv_get

    stop = threading.Event()

    def listen() -> None:
        while True:
            # The cluster's store may be away for a moment. The next look finds the notice.
            with contextlib.suppress(Exception):
                for token in tokens:
                    if value := _internal_kv_get(f"notice-{token}", namespace=_NAMESPACE):
                        keep(Notice(int(value)))
            if stop.wait(POLL_SECONDS):
                return

    thread = threading.Thread(target=listen, daemon=True, name="notices")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def signals_as_notices(tell: Callable[[int], None]) -> Iterator[None]:
    """Call a function at the first SIGTERM or SIGHUP. A later one does what it did before.

    Signals within `SAME_SECONDS` after the first are part of it: `ray job stop` and other managers
    send one to each process of a command, and the parent passes its own on.

    Args:
        tell: It takes the number of the signal, and runs in a thread of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] < SAME_SECONDS:
            return
        if first:
            restore()
            signal.raise_signal(number)
            return
        first.append(time.monotonic())
        threading.Thread(target=tell, args=(number,), daemon=True).start()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
