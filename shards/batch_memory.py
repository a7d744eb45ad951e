"""Memory for the tensors of batches: pinned, shared with another process, or reused."""

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch.utils.data import get_worker_info

from shards.errors import ShardError

_MAX_BUFFERS = 8
"""The buffers kept for each field. Further buffers are used once and then freed."""


class BatchMemory:
    """Allocate tensors with uninitialised content. Not safe for several threads.

    Ordinary memory is kept for each field and is reused when no tensor refers to it any more,
    because fresh memory costs more than the copy into it. torch itself reuses pinned memory.
    """

    def __init__(self) -> None:
        self._free: defaultdict[str, list[np.ndarray]] = defaultdict(list)

    def __reduce__(self) -> tuple:
        return BatchMemory, ()

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, pinned: bool
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Allocate a tensor for a field.

        Args:
            name: The name of the field.
            shape: The shape of the tensor.
            dtype: The numpy dtype of the tensor.
            pinned: Whether the memory is page-locked.

        Returns:
            The tensor and a numpy array over the same memory.

        Raises:
            ShardError: torch has no dtype like `dtype`.
        """
        try:
            torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        except (TypeError, ValueError) as error:
            raise ShardError(
                f"field {name!r}: torch has no dtype like {dtype}; decode samples to another dtype"
            ) from error
        num_bytes = dtype.itemsize * math.prod(shape)
        if pinned or not num_bytes:
            tensor = torch.empty(shape, dtype=torch_dtype, pin_memory=pinned)
        elif get_worker_info() is not None:
            # The main process maps this memory too, as with torch's own collate function.
            storage = torch.UntypedStorage._new_shared(num_bytes)
            tensor = torch.empty(0, dtype=torch_dtype).set_(storage).view(shape)
        else:
            tensor = torch.from_numpy(self._lease(name, shape, dtype))
        return tensor, tensor.numpy()

    def _lease(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        num_bytes = dtype.itemsize * math.prod(shape)
        free = self._free[name]
        buffer = free.pop() if free else None
        if buffer is None or buffer.nbytes < num_bytes:
            buffer = np.empty(num_bytes, np.uint8)
        lease = buffer[:num_bytes].view(dtype).reshape(shape)
        # Every tensor over this memory holds a reference to `lease`.
        weakref.finalize(lease, _give_back, free, buffer).atexit = False
        return lease


def _give_back(free: list[np.ndarray], buffer: np.ndarray) -> None:
    if len(free) < _MAX_BUFFERS:
        free.append(buffer)
