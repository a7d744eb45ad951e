"""Workers and machines that a training loses: how many it survives, and the wait for room."""

import time
from collections.abc import Callable

from cluster.errors import ClusterError
from pipeline.config.cluster import ClusterConfig
from pipeline.config.folders import Folder
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.placing import missing_workers

POLL_SECONDS = 2.0
LOSSES_OF_A_RANGE = 3
GOES_ON = "the same command goes on from the last checkpoint"


class Losses:
    """Counts the losses of a training, and says whether it goes on.

    With a range of workers, only losses in a row without a new checkpoint count.

    Args:
        cluster: The machines and processes.
        folder: The folder of the training.

    Attributes:
        count: The number of losses that count.
    """

    def __init__(self, cluster: ClusterConfig, folder: Folder) -> None:
        self._cluster, self._checkpoints = cluster, folder / "checkpoints"
        self._step: int | None = None
        self.count = 0

    @property
    def _allowed(self) -> int:
        if self._cluster.is_elastic:
            return max(self._cluster.max_failures, LOSSES_OF_A_RANGE)
        # Within this process, a failure may leave any state behind, so it is not retried.
        return self._cluster.max_failures if self._cluster.min_workers else 0

    @property
    def field(self) -> str:
        """What bounds the losses, in words."""
        return "without a new checkpoint" if self._cluster.is_elastic else "cluster.max_failures"

    @property
    def limit(self) -> str:
        """The largest number of losses, in words."""
        if self._cluster.is_elastic:
            return f"{self._allowed} without a new checkpoint"
        return f"cluster.max_failures={self._allowed}"

    @property
    def may_go_on(self) -> bool:
        """Whether the training survives losses at all."""
        return self._allowed > 0

    def survives_another(self) -> bool:
        """Count a loss, and return whether the training goes on after it."""
        if self._cluster.is_elastic:
            last = last_checkpoint(self._checkpoints)
            step = None if last is None else last.state.step
            if step != self._step:
                self._step, self.count = step, 0
        if self.count >= self._allowed:
            return False
        self.count += 1
        return True


class Room:
    """Wait for room on the cluster, for at most `cluster.wait_seconds`.

    Args:
        cluster: The machines and processes.
        notify: A function that takes a line when the wait begins.
    """

    def __init__(self, cluster: ClusterConfig, notify: Callable[[str], None]) -> None:
        self._cluster, self._notify = cluster, notify
        self._since = time.monotonic()
        self._notified = False

    def wait_for_machines(self) -> None:
        """Return when the cluster's machines together have what the workers need.

        Raises:
            ClusterError: They did not have it within `cluster.wait_seconds`.
        """
        self._since, self._notified = time.monotonic(), False
        while missing := self._missing():
            self._check(f"a machine was lost, and the training {missing}")
            time.sleep(POLL_SECONDS)
        self._since = time.monotonic()

    def wait_for_others(self) -> None:
        """Record that Ray Train found no room for the workers; called each time.

        Raises:
            ClusterError: This has lasted for `cluster.wait_seconds`.
        """
        missing = self._missing() or "finds no room, since others use the cluster"
        self._check(f"the training {missing}")

    def _missing(self) -> str | None:
        return missing_workers(self._cluster)

    def _check(self, what: str) -> None:
        limit = self._cluster.wait_seconds
        if limit is not None and time.monotonic() - self._since >= limit:
            raise ClusterError(
                f"{what}, for {limit:g} s (cluster.wait_seconds); add machines, or lower "
                f"cluster.num_workers; {GOES_ON}"
            )
        if not self._notified:
            bound = "for ever" if limit is None else f"at most {limit:g} s"
            self._notify(f"{what}; waiting for room ({bound}: cluster.wait_seconds)")
            self._notified = True
