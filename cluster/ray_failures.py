"""Find what ended a training below the exceptions that Ray wraps around it, in one line."""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from shards.redaction import redacted

Kind = Literal["lost", "no room", "no memory", "no storage", "no GPU"]
# With these failures, another attempt of the same command ends in the same way.
FINAL: frozenset[Kind] = frozenset({"no memory", "no storage", "no GPU"})

_NO_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_NO_GPU = re.compile(
    r"no GPUs? (was |were )?found|No CUDA GPUs|not compiled with CUDA|no NVIDIA|have NCCL built in",
    re.I,
)
_CUT_OFF = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Socket closed|Timed out waiting|"
    r"nccl(Remote|System|Internal)Error|Watchdog caught collective",
    re.I,
)
_READER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")
_INNER = ("health_check_failure", "controller_failure", "cause", "__cause__")
_DIED = (
    "ActorDiedError",
    "LocalRayletDiedError",
    "ActorUnavailableError",
    "NodeDiedError",
    "RayActorError",
    "WorkerCrashedError",
    "WorkerGroupStartupFailedError",
    "WorkerHealthCheckTimeoutError",
)


@dataclass(frozen=True)
class Failure:
    """The reason why a training ended.

    Attributes:
        kind: "lost" means a worker, its machine or its connection was lost. "no room" means the
            cluster has no room for the workers at the moment. The others name what was missing.
        text: One line, without a full stop.
    """

    kind: Kind
    text: str

    @property
    def is_final(self) -> bool:
        """Whether another attempt would end in the same way."""
        return self.kind in FINAL


def read_failure(error: BaseException) -> Failure | None:
    """Return the machines' failure, or None if the cause is in the program itself."""
    found = [failure for rank, inner in causes(error) if (failure := _read(rank, inner))]
    # A missing resource says more than a lost worker. A lost worker says more than the connections
    # that the other workers lost to it.
    order = {"no storage": 0, "no memory": 1, "no GPU": 2, "no room": 3, "lost": 4}
    return min(found, key=lambda f: (order[f.kind], "connection" in f.text), default=None)


def causes(error: BaseException) -> Iterator[tuple[int | None, BaseException]]:
    """Yield all errors below an error, each with the rank of the worker that raised it."""
    seen: set[int] = set()
    queue: list[tuple[int | None, Any]] = [(None, error)]
    while queue:
        rank, current = queue.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield rank, current
        # Ray Train stores the failures of its workers by rank.
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            queue += list(failures.items())
        for name in _INNER:
            queue.append((rank, getattr(current, name, None)))


def root_error(error: BaseException) -> BaseException:
    """Return the program's own error below Ray's errors, or the error itself if there is none."""
    while type(error).__module__.startswith("ray"):
        failures = getattr(error, "worker_failures", None)
        below = [*failures.values()] if isinstance(failures, dict) else []
        below += [getattr(error, name, None) for name in _INNER]
        inner = next((e for e in below if isinstance(e, BaseException) and e is not error), None)
        if inner is None:
            break
        error = inner
    return error


def _read(rank: int | None, error: BaseException) -> Failure | None:
    name, text = type(error).__name__, redacted(" ".join(str(error).split()))
    who = "the command" if rank is None else f"worker {rank}"
    if name in ("WorkerGroupStartupTimeoutError", "NoRoomError"):
        return Failure("no room", "the cluster has no room for the workers")
    if isinstance(error, OSError) and error.errno in _NO_STORAGE:
        where = f"{error.filename}: " if error.filename else ""
        return Failure("no storage", f"{where}{who} cannot write or read ({error.strerror})")
    if name == "OutOfMemoryError" and type(error).__module__.startswith("ray"):
        return Failure(
            "lost",
            f"{who} was killed by Ray, since its machine ran short of memory; lower "
            "training.batch_size, or run fewer workers on each machine",
        )
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return Failure(
            "no memory",
            f"{who} ran out of memory ({text[:160]}); lower training.batch_size, or raise "
            "training.gradient_accumulation_steps or training.activation_checkpointing",
        )
    if isinstance(error, RuntimeError | ValueError | AssertionError) and _NO_GPU.search(text):
        return Failure(
            "no GPU",
            f"{who} finds no GPU that torch can use ({text[:160]}); set cluster.use_gpu=false, or "
            "install a torch that is built for the machine's GPUs",
        )
    if name in _DIED:  # while it starts, a worker has no rank
        return Failure("lost", _death("a worker" if rank is None else who, text))
    if isinstance(error, RuntimeError) and _READER.search(text):
        return Failure(
            "lost",
            f"a process that reads samples for {who} was killed or crashed, perhaps for lack of "
            "memory; a lower training.loader_workers takes less memory",
        )
    if isinstance(error, RuntimeError) and _CUT_OFF.search(text):
        return Failure("lost", f"{who} lost its connection to the others ({text[:160]})")
    return None


def _death(who: str, text: str) -> str:
    """Describe the loss of a process or machine in one line, from Ray's text."""
    if re.search(r"node .{0,80}(died|dead|terminated|failed)|node_death|its node", text, re.I):
        return f"the machine of {who} was lost"
    pid = re.search(r"pid[:=] ?(\d+)", text)
    process = f" (process {pid[1]})" if pid else ""
    return (
        f"{who}{process} was lost: killed by the system for want of memory or by hand, crashed in "
        "native code, or its machine is gone"
    )
