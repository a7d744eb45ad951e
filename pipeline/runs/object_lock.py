"""A lock in object storage, which has no locks of its own.

    .train.lock/00000007.json   {"pid": …, "machine": …, "table": …, "beat": 12, "released": false}

The object with the highest number belongs to the holder, who writes it anew every
`HEARTBEAT_SECONDS`. The next holder creates the next number, which only one process can do. That is
allowed if the holder has released the lock, if its process on this machine is gone, or if it has
not written for `STALE_SECONDS`. A holder that finds a higher number has lost the lock.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from upath import UPath

from pipeline.errors import UserError
from pipeline.runs.storage import create, exists, names, read_bytes, remove, write_bytes
from shards.errors import ShardError

HEARTBEAT_SECONDS, STALE_SECONDS, POLL_SECONDS = 5.0, 30.0, 0.5
_MAX_BYTES = 1 << 16
_SUFFIX = ".json"


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock.

    Attributes:
        pid: The number of the process.
        machine: The name of the machine, for people.
        table: What tells process tables apart: numbers mean the same process only in one of them.
        started: When the process started, in seconds since 1970.
        token: Different for each time that a lock is taken.
        beat: The number of heartbeats so far.
        released: Whether the lock is free again.
    """

    pid: int
    machine: str
    table: str
    started: float
    token: str
    beat: int = 0
    released: bool = False

    def data(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def is_gone(self) -> bool:
        """Return whether the process ran in this process table and has ended."""
        if self.table != _process_table():
            return False
        try:
            process = psutil.Process(self.pid)
            is_other = abs(process.create_time() - self.started) > 1
            return is_other or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@contextlib.contextmanager
def object_lock(
    folder: UPath, what: str, *, patience_seconds: float
) -> Iterator[Callable[[], None]]:
    """Hold a lock in object storage.

    Args:
        folder: The prefix of the lock's objects.
        what: What is locked, for errors.
        patience_seconds: How long to wait for a holder that is alive.

    Yields:
        A function that raises UserError if another process has taken the lock over.

    Raises:
        UserError: A living process holds the lock, or the storage cannot be used.
    """
    holder = _Holder(
        os.getpid(),
        socket.gethostname(),
        _process_table(),
        psutil.Process().create_time(),
        secrets.token_hex(8),
    )
    number = _acquire(folder, holder, what, patience_seconds)
    heartbeat = _Heartbeat(folder, number, holder, what)
    try:
        yield heartbeat.check
    finally:
        heartbeat.release()


def _acquire(folder: UPath, own: _Holder, what: str, patience_seconds: float) -> int:
    started = time.monotonic()
    seen: tuple[int, bytes] | None = None
    seen_at, is_alive = started, False
    while True:
        number, data = _latest(folder)
        now = time.monotonic()
        if seen != (number, data):
            # A first look shows nothing: the holder may have died an hour ago.
            is_alive = seen is not None
            seen, seen_at = (number, data), now
        holder = _parsed(data)
        is_free = number == 0 or (holder is not None and (holder.released or holder.is_gone()))
        if is_free or now - seen_at > STALE_SECONDS:
            if create(folder / _name(number + 1), own.data()):
                _remove_before(folder, number + 1)
                return number + 1
            continue
        if is_alive and now - started > patience_seconds:
            by = f" (process {holder.pid} on {holder.machine})" if holder else ""
            raise UserError(
                f"{what}: another command is at work there{by}; wait until it has ended, or give "
                "this one another name (name=…)"
            )
        time.sleep(POLL_SECONDS)


def _latest(folder: UPath) -> tuple[int, bytes]:
    """Return the highest number with its content; 0 if there is none."""
    while True:
        number = max(map(_number, names(folder, _SUFFIX)), default=0)
        if number == 0:
            return 0, b""
        with contextlib.suppress(FileNotFoundError):  # the next holder has just removed it
            return number, read_bytes(folder / _name(number), _MAX_BYTES)


def _remove_before(folder: UPath, number: int) -> None:
    for name in names(folder, _SUFFIX):
        if _number(name) < number:
            remove(folder / name)


class _Heartbeat:
    """Shows in a thread that the holder is alive, and notices that the lock was lost."""

    def __init__(self, folder: UPath, number: int, holder: _Holder, what: str) -> None:
        self._folder, self._number, self._what = folder, number, what
        self._holder = holder
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="lock")
        self._thread.start()

    def check(self) -> None:
        """Raise UserError if another process has taken the lock over."""
        if self._lost:
            raise UserError(
                f"{self._what}: this command did not reach the storage for {STALE_SECONDS:g} s, "
                "and another one has taken over; this one stops"
            )

    def release(self) -> None:
        """Free the lock. If the storage does not answer, it becomes free by itself."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(UserError):
                self._write(replace(self._holder, released=True))

    def _work(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(UserError, ShardError):  # the storage may be away for a while
                if exists(self._folder / _name(self._number + 1)):
                    self._lost = True
                    return
                self._holder = replace(self._holder, beat=self._holder.beat + 1)
                self._write(self._holder)

    def _write(self, holder: _Holder) -> None:
        write_bytes(self._folder / _name(self._number), holder.data())


def _parsed(data: bytes) -> _Holder | None:
    """Return who holds the lock; None if the object is not one of ours."""
    try:
        holder = _Holder(**json.loads(data))
        numbers = (holder.pid, holder.started, holder.beat)
        if not all(isinstance(number, int | float) for number in numbers) or holder.pid < 1:
            return None
        return replace(holder, machine=str(holder.machine)[:80])
    except (ValueError, TypeError, RecursionError):
        return None


def _name(number: int) -> str:
    return f"{number:08d}{_SUFFIX}"


def _number(name: str) -> int:
    digits = name.removesuffix(_SUFFIX)
    return int(digits) if digits.isdecimal() and len(digits) < 16 else 0


def _process_table() -> str:
    """Return a name of this machine's process table, or of this container's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # another system than Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
