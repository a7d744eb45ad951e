"""Memory that is used again once nothing refers to it.

Fresh memory costs more than the copy into it: the kernel clears each page at its first use.
"""

import weakref

import numpy as np

_MAX_BUFFERS = 8
"""The buffers that are kept. Further ones are freed."""


class ReusedMemory:
    """Leases of memory with uninitialised content. Not safe for several threads."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def lease(self, num_bytes: int) -> memoryview:
        """Return writable memory. It is reused when nothing refers to a part of it any more."""
        buffer = self._free.pop() if self._free else None
        if buffer is None or len(buffer) < num_bytes:
            # A batch is seldom of the size of the last one, so a little more is taken.
            buffer = np.empty(num_bytes + num_bytes // 8, np.uint8)
        lease = buffer[:num_bytes]
        weakref.finalize(lease, _give_back, self._free, buffer).atexit = False
        return lease.data


def _give_back(free: list[np.ndarray], buffer: np.ndarray) -> None:
    if len(free) < _MAX_BUFFERS:
        free.append(buffer)
