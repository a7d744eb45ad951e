"""Work that threads begin before its result is requested."""

import os
from collections.abc import Callable, Collection, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Prefetcher(Generic[Key, Result]):
    """Results of work on threads, by key.

    The threads start when they are first needed. A forked process starts its own. Not safe for
    several threads.

    Args:
        num_threads: The number of threads in the pool.
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
        """Start `work` on `key`, unless it was started already."""
        self._notice_fork()
        if key in self._begun:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="shards")
        self._begun[key] = self._pool.submit(work, key)

    def is_done(self, key: Key) -> bool:
        """Return whether a key was begun and its work has ended."""
        return key in self and self._begun[key].done()

    def take(self, key: Key) -> Result:
        """Wait for the result of a key that was begun, and forget it. Raises what `work` raised."""
        return self._begun.pop(key).result()

    def forget(self, keys: Iterable[Key]) -> None:
        """Drop the results of these keys, and cancel their work if it has not started."""
        self._notice_fork()
        for key in keys:
            if key in self._begun:
                self._begun.pop(key).cancel()

    def forget_all_but(self, keys: Collection[Key]) -> None:
        """Drop the results of all other keys, and cancel their work if it has not started."""
        self.forget(self._begun.keys() - set(keys))

    def _notice_fork(self) -> None:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._pool = None  # a fork does not copy threads
            self._begun = {}
