"""Callbacks of Ray Train: signals to workers, and a range of workers.

They use interfaces that Ray Train keeps for developers, since its public callbacks see neither.
Importing this module imports Ray.
"""

import signal
import time
from types import FrameType
from typing import Any

from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import (
    ControllerCallback,
    WorkerCallback,
    WorkerGroupCallback,
)

from cluster.notices import Notice, clear, forget, is_confirmed, keep, tell_workers

RESIZE_SECONDS = 120.0
_PAUSE_SECONDS = 0.2
_WAITING = ("InitializingState", "RestartingState", "ReschedulingState")


class WorkerNotices(WorkerCallback):
    """Keeps the first SIGTERM to each worker of Ray Train as a notice.

    Ray Train calls this on the main thread of every worker. Python can set a signal's handler only
    there, and runs it there, when Ray Train next asks the worker for its status (every 2 s).
    """

    def after_init_train_context(self) -> None:
        """Set the handler. A second signal does what Ray does at the first."""
        forget()
        before = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            keep(Notice.WORKER_SIGNAL)
            signal.signal(number, before)

        signal.signal(signal.SIGTERM, handle)


class Resizing(ControllerCallback, WorkerGroupCallback):
    """Lets the workers stop at a step with a checkpoint before their number changes.

    Ray Train ends its workers at once when it resizes them, and waits for machines without an end.

    Args:
        token: The token of the launch, under which the workers listen.
        min_workers: The smallest number of workers.
        wait_seconds: How long to wait for room for them.
    """

    def __init__(self, token: str, min_workers: int, wait_seconds: float) -> None:
        self._token, self._min_workers, self._wait_seconds = token, min_workers, wait_seconds
        self._is_running = False
        self._since: float | None = None

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Note that there are workers to stop."""
        self._is_running = True

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Note that there are none any more."""
        self._is_running = False

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Ask the workers to stop with a checkpoint, and wait for it, at most `RESIZE_SECONDS`."""
        if not self._is_running:
            return
        tell_workers(self._token, Notice.RESIZE)
        end = time.monotonic() + RESIZE_SECONDS
        while not is_confirmed(self._token) and time.monotonic() < end:
            time.sleep(_PAUSE_SECONDS)
        clear(self._token)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """End the launch if there is no room for the smallest number of workers for too long.

        Raises:
            WorkerGroupStartupTimeoutError: There is none.
        """
        if type(current_state).__name__ not in _WAITING:
            self._since = None
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > self._wait_seconds:
            raise WorkerGroupStartupTimeoutError(self._min_workers)
        time.sleep(_PAUSE_SECONDS)  # Ray Train asks again at once
