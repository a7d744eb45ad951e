"""The content of a remote file in order, while its parts are requested in parallel."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore

ReadRange = Callable[[str, int, int], bytes]
"""Takes the name of a file and a range [start, stop), and returns these bytes."""


class PartReader:
    """Read whole files in parts. All files that are read at a time share the requests.

    At most `num_threads` parts are requested, or wait for an earlier part of their file. So a
    single file uses all requests, and memory is `num_threads * part_bytes`. Safe for several
    threads.

    Args:
        read: Reads a part.
        part_bytes: The most bytes in a part.
        num_threads: The most requests at a time.
    """

    def __init__(self, read: ReadRange, part_bytes: int, num_threads: int) -> None:
        self._read = read
        self._part_bytes = part_bytes
        self._free = BoundedSemaphore(num_threads)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="parts")

    def chunks(self, name: str, size: int) -> Generator[bytes]:
        """Yield the content of a file from start to end.

        Args:
            name: The name of the file.
            size: The size of the file in bytes.

        Raises:
            Exception: Whatever `read` raised for the earliest part that failed.
        """
        requested: deque[Future[bytes]] = deque()
        start = 0
        try:
            while start < size or requested:
                # A reader that waits for none of its own parts may wait for those of others.
                if start < size and self._free.acquire(blocking=not requested):
                    stop = min(start + self._part_bytes, size)
                    requested.append(self._pool.submit(self._read, name, start, stop))
                    start = stop
                    continue
                yield requested[0].result()
                requested.popleft()
                self._free.release()
        finally:
            for part in requested:
                part.cancel()
                self._free.release()
