"""Keep the memory that decoders free, for the next file."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory(num_bytes: int = 128 << 20) -> None:
    """Let this process keep up to `num_bytes` of freed memory instead of returning it at once.

    Each decoded image allocates and frees a few arrays of some hundred kilobytes. By default, glibc
    gets their pages from the kernel each time, filled with zeros. This takes as long as decoding.
    With another C library, this function does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, num_bytes)
        mallopt(_M_MMAP_THRESHOLD, min(num_bytes, 32 << 20))  # glibc's limit on 64 bits
