"""Work begun on threads before its result is asked for."""

import os
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Prefetcher(Generic[Key, Result]):
    """Results by key of work on threads, which start when first needed, anew in a forked process.

    Not for several threads at once.

    Args:
        num_threads: of the pool.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._begun: dict[Key, Future[Result]] = {}

    def __contains__(self, key: Key) -> bool:
        self._notice_fork()
        return key in self._begun

    def begin(self, key: Key, work: Callable[[Key], Result]) -> None:
        """Starts `work` on `key`, unless that was done already."""
        self._notice_fork()
        if key in self._begun:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="shards")
        self._begun[key] = self._pool.submit(work, key)

    def take(self, key: Key) -> Result:
        """Waits for the result of a key that was begun, and forgets it. Raises what `work` did."""
        return self._begun.pop(key).result()

    def forget_all_but(self, keys: Collection[Key]) -> None:
        """Drops the results of other keys, and does not start on them where that is still ahead."""
        self._notice_fork()
        for key in self._begun.keys() - set(keys):
            self._begun.pop(key).cancel()

    def _notice_fork(self) -> None:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._pool = None  # its threads stayed behind
            self._begun = {}
