"""All ranks of a training agree on the step at which they stop."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from cluster.notices import Notice, confirm, listening, received

CHECK_SECONDS = 0.5
_MOST_STEPS = 10_000
_MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class Stop:
    """An agreed stop.

    Attributes:
        notice: The highest notice that a rank has received.
        rank: A rank that has received it.
    """

    notice: Notice
    rank: int


class StopAgreedError(Exception):
    """All ranks have agreed to stop, within an evaluation.

    Attributes:
        stop: Why.
    """

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.notice.name)
        self.stop = stop


class TrainingStoppedError(Exception):
    """All ranks stop here.

    Attributes:
        stop: Why.
        step: The step after which they stop.
        is_saved: Whether there is a checkpoint of that step.
    """

    def __init__(self, stop: Stop, step: int, *, is_saved: bool) -> None:
        super().__init__(f"stopped at step {step}: {stop.notice.name}")
        self.stop, self.step, self.is_saved = stop, step, is_saved


@contextlib.contextmanager
def notices_of(token: str, study_token: str = "") -> Iterator[None]:
    """Receive the notices to this training, and confirm to Ray Train's controller when it is left.

    Args:
        token: The token of the training. Without it, only signals to this process count.
        study_token: The token of the study that this training is a trial of; empty for none.
    """
    import ray.train

    is_listener = token and ray.is_initialized() and ray.train.get_context().get_world_rank() == 0
    if not is_listener:
        yield
        return
    with listening([token, *filter(None, [study_token])]):
        try:
            yield
        finally:
            confirm(token)


class StopCheck:
    """Asks for notices at step boundaries. All ranks must ask equally often.

    The ranks compare notices about every `CHECK_SECONDS`, over a group of their own on the CPUs, so
    the devices need not be synchronised. The slowest rank's step time decides how many steps pass
    until the next comparison, so all ranks compare after the same steps.

    Args:
        rank: This rank.
        world_size: The number of ranks. The constructor is a collective.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank = rank
        self._group = dist.new_group(backend="gloo") if world_size > 1 else None
        self._steps, self._next = 0, 1
        self._since = time.monotonic()

    def agreed(self, *, now: bool = False) -> Stop | None:
        """Return the stop that all ranks have agreed on, or None.

        Args:
            now: Whether to compare at this step in any case, which must be the same on all ranks.
        """
        if self._group is None:
            notice = received()
            return Stop(notice, self._rank) if notice else None
        self._steps += 1
        if self._steps < self._next and not now:
            return None
        seconds = (time.monotonic() - self._since) / self._steps
        own = [float(received() * _MOST_RANKS + self._rank), seconds]
        highest = torch.tensor(own, dtype=torch.float64)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
        number, slowest = highest.tolist()
        agreed, rank = divmod(int(number), _MOST_RANKS)
        self._steps, self._since = 0, time.monotonic()
        self._next = min(_MOST_STEPS, max(1, math.floor(CHECK_SECONDS / max(slowest, 1e-6))))
        return Stop(Notice(agreed), rank) if agreed else None
