"""Write this rank's part of a checkpoint: copied to host memory first, then to a file.

A part is a safetensors file with ranges of flattened tensors, named `NAME@START`. Its header holds
the shapes of the whole tensors. See `docs/architecture.md`.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from cluster.fragments import Fragment
from pipeline.config.folders import Folder
from pipeline.training.safetensors_header import in_order, write_header
from pipeline.training.stored_tensors import SHAPES, FileRecord, StoredTensors, bytes_of, key_of
from shards.retries import Retry, try_again

BLOCK_BYTES = 64 << 20
"""The size of the blocks of host memory. torch rounds pinned memory up to a power of two."""


class HostCopy:
    """The values of some fragments in host memory, which is used again for the next copy.

    Args:
        device: The device of the fragments. For CUDA the memory is pinned.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._blocks: list[torch.Tensor] = []
        self._header = b""
        self.num_bytes = 0

    def take(self, fragments: Iterable[Fragment]) -> str | None:
        """Copy the values. On CUDA the copy is only ordered before the work that is queued next.

        Returns:
            The name of the first tensor with a value that is not finite, or None.

        Raises:
            ValueError: A tensor has a type that no checkpoint has.
        """
        by_key = {key_of(each.name, each.start): each for each in fragments}
        keys = in_order((key, each.dtype) for key, each in by_key.items())
        self._header = write_header(
            ((key, by_key[key].dtype, (by_key[key].length,)) for key in keys),
            {SHAPES: json.dumps({each.name: list(each.shape) for each in by_key.values()})},
        )
        self._reserve(sum(each.num_bytes for each in by_key.values()))
        ends = itertools.accumulate(by_key[key].num_bytes for key in keys)
        end_of = dict(zip(keys, ends, strict=True))
        extremes = []
        for key, fragment in by_key.items():  # state on NVMe is read once in this order
            values = fragment.load().to(fragment.dtype)
            if fragment.length and values.is_floating_point():
                extremes.append((fragment.name, torch.stack(torch.aminmax(values))))
            self._copy(end_of[key] - fragment.num_bytes, values)
        return _not_finite(extremes)

    def write(self, path: Folder) -> FileRecord:
        """Write the values to a file, which must survive a power cut when this returns.

        Raises:
            OSError: The storage fails.
        """
        if isinstance(path, Path):
            return self._write(path)
        return try_again(lambda: self._write(path), Retry())

    def _write(self, path: Folder) -> FileRecord:
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            for block in self._filled():
                file.write(block)
                digest.update(block)
                size += len(block)
            if isinstance(path, Path):
                file.flush()
                os.fsync(file.fileno())
        return FileRecord(digest.hexdigest(), size)

    def _reserve(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        sizes = [BLOCK_BYTES] * (num_bytes // BLOCK_BYTES)
        sizes += [num_bytes % BLOCK_BYTES] if num_bytes % BLOCK_BYTES else []
        for index, size in enumerate(sizes):
            if index == len(self._blocks):
                self._blocks.append(torch.empty(0, dtype=torch.uint8))
            if len(self._blocks[index]) < size:
                self._blocks[index] = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        del self._blocks[len(sizes) :]

    def _copy(self, offset: int, values: torch.Tensor) -> None:
        size, done = values.dtype.itemsize, 0
        while done < len(values):
            index, start = divmod(offset + done * size, BLOCK_BYTES)
            count = min(len(values) - done, (BLOCK_BYTES - start) // size)
            target = self._blocks[index][start : start + count * size].view(values.dtype)
            target.copy_(values[done : done + count], non_blocking=self._pinned)
            done += count

    def _filled(self) -> Iterator[memoryview]:
        yield memoryview(self._header)
        left = self.num_bytes
        for block in self._blocks:
            count = min(left, len(block))
            yield bytes_of(block[:count])
            left -= count


def write_whole(tensors: StoredTensors, path: Path) -> str:
    """Write tensors into one safetensors file, a bounded piece at a time.

    The bytes are those that `safetensors.torch.save_file` writes.

    Args:
        tensors: The tensors, in the files of a checkpoint.
        path: The file. It is removed if this fails.

    Returns:
        Its sha256.

    Raises:
        OSError: The storage fails.
        UserError: A file of the checkpoint cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file:
            for block in _whole_blocks(tensors):
                file.write(block)
                digest.update(block)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def whole_sha256(tensors: StoredTensors) -> str:
    """Return the sha256 of the file that `write_whole` would write."""
    digest = hashlib.sha256()
    for block in _whole_blocks(tensors):
        digest.update(block)
    return digest.hexdigest()


def _whole_blocks(tensors: StoredTensors) -> Iterator[bytes | memoryview]:
    stored = tensors.tensors
    names = in_order((name, each.dtype) for name, each in stored.items())
    yield write_header((name, stored[name].dtype, stored[name].shape) for name in names)
    for name in names:
        step = BLOCK_BYTES // stored[name].dtype.itemsize
        for start in range(0, stored[name].length, step):
            part = tensors.read(name, start, min(step, stored[name].length - start))
            yield bytes_of(part)


def _not_finite(extremes: list[tuple[str, torch.Tensor]]) -> str | None:
    """Return the first name whose least or largest value is not finite. Both are NaN for NaN."""
    if not extremes:
        return None
    finite = torch.isfinite(torch.stack([each for _, each in extremes])).all(dim=1).tolist()
    return next(
        (name for (name, _), is_finite in zip(extremes, finite, strict=True) if not is_finite), None
    )
