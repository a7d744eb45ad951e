"""Memory that decoders free is kept for the next file."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory(num_bytes: int = 128 << 20) -> None:
    """Let this process keep that much freed memory instead of giving it back at once.

    Every decoded image takes and frees a few arrays of some hundred kilobytes. Left alone, glibc
    fetches their pages from the kernel each time, zeroed: as much work as decoding itself. Does
    nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, num_bytes)
        mallopt(_M_MMAP_THRESHOLD, min(num_bytes, 32 << 20))  # glibc's greatest on 64 bits
