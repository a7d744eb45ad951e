"""Stop a study at a signal: its running trials save a checkpoint first, and no other one starts."""

import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.interrupts import Terminated
from cluster.notices import Notice, clear, signals_as_notices, tell_workers

STOP_SECONDS = 120.0
"""How long running trials have until they have saved a checkpoint."""
GOES_ON = "the same command goes on with the study"


class StudyStop:
    """What a study knows about notices to stop.

    Args:
        notify: A function that takes a line when a signal comes.

    Attributes:
        token: The token under which the workers of all trials listen.
        signal: The number of the signal that has come, or None.
        running: The numbers of the trials that are running.
        stopped: What the trials that have stopped at a notice say, by number.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self.token = secrets.token_hex(8)
        self.signal: int | None = None
        self.running: set[int] = set()
        self.stopped: dict[int, str] = {}
        self._awaited: set[int] | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Stop the trials at the first SIGTERM or SIGHUP. A second one ends the command at once."""
        with signals_as_notices(self._tell):
            try:
                yield
            finally:
                clear(self.token)

    def _tell(self, number: int) -> None:
        self._notify(
            f"{signal.Signals(number).name}: each running trial saves a checkpoint after its step "
            "and stops; a second one stops them at once"
        )
        tell_workers(self.token, Notice.COMMAND)
        self.signal = number

    def is_over(self) -> bool:
        """Return whether a signal has come, and the trials that ran then have ended."""
        if self.signal is None:
            return False
        if self._awaited is None:
            self._awaited, self._since = set(self.running), time.monotonic()
        self._awaited &= self.running
        return not self._awaited or time.monotonic() - self._since > STOP_SECONDS

    def stopper(self) -> Any:
        """Return a stopper for Ray Tune that ends the study when it is over."""
        from ray.tune.stopper import NoopStopper, Stopper

        study = self

        class WhenOver(Stopper):
            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                return study.is_over()

            # Ray Tune pickles it for its own restoration, which is never used.
            def __reduce__(self) -> Any:
                return NoopStopper, ()

        return WhenOver()

    def end(self, is_open: Callable[[int], bool]) -> None:
        """End the command if a notice has left trials open.

        Args:
            is_open: Returns whether a trial has not ended.

        Raises:
            Terminated: The text names each such trial.
        """
        lines = [
            f"trial {number}: {text}"
            for number, text in sorted(self.stopped.items())
            if text and is_open(number)
        ]
        if self.signal is not None or lines:
            raise Terminated(self.signal or signal.SIGTERM, "; ".join([*lines, GOES_ON]))
