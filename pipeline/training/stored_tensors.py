"""The tensors of a checkpoint, read in ranges from the files in which they lie."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.training.safetensors_header import Entry, read_header
from shards.errors import ShardError
from shards.plain import is_count
from shards.set_files import open_file

SHAPES = "shapes"
"""The key of a part's header under which the shapes of whole tensors are, as JSON."""
CHUNK_BYTES = 16 << 20
"""The number of bytes that are read, hashed and checked at once."""


@dataclass(frozen=True)
class FileRecord:
    """What a checkpoint's state says of one of its files.

    Attributes:
        sha256: Its sha256.
        num_bytes: Its size; None in a checkpoint of an older version.
    """

    sha256: str
    num_bytes: int | None = None


@dataclass(frozen=True)
class Piece:
    """A range of a flattened tensor, and where it lies.

    Attributes:
        file: The name of the file.
        offset: The offset of its first byte in the file.
        start: The index of its first element in the tensor.
        length: The number of its elements.
    """

    file: str
    offset: int
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        pieces: The ranges that cover it, in order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


class StoredTensors:
    """The tensors of one kind in a checkpoint, such as its weights.

    Files stay open between reads, until the end of `with`.

    Args:
        folder: The folder of the checkpoint.
        tensors: The tensors by name.
    """

    def __init__(self, folder: Folder, tensors: Mapping[str, StoredTensor]) -> None:
        self.folder = folder
        self.tensors = dict(tensors)
        self._files = contextlib.ExitStack()
        self._open: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._files.close()

    @property
    def names(self) -> set[str]:
        """The names of the tensors."""
        return set(self.tensors)

    def read(self, name: str, start: int, length: int) -> torch.Tensor:
        """Return a range of a flattened tensor, `[length]`, on the CPU. Nothing else is read.

        Raises:
            UserError: A file cannot be read.
        """
        stored = self.tensors[name]
        out = torch.empty(length, dtype=stored.dtype)
        size = stored.dtype.itemsize
        view = bytes_of(out)
        for piece in stored.pieces:
            first = max(start, piece.start)
            last = min(start + length, piece.start + piece.length)
            if first < last:
                file = self._file(piece.file)
                part = view[(first - start) * size : (last - start) * size]
                try:
                    file.seek(piece.offset + (first - piece.start) * size)
                    _read_into(file, part, self.folder / piece.file)
                except OSError as error:
                    raise _unreadable(self.folder / piece.file, error) from None
        return out

    def _file(self, name: str) -> BinaryIO:
        if name not in self._open:
            self._open[name] = self._files.enter_context(opened(self.folder, name))
        return self._open[name]

    def whole(self, name: str) -> torch.Tensor:
        """Return a whole tensor on the CPU."""
        stored = self.tensors[name]
        return self.read(name, 0, stored.length).reshape(stored.shape)


@contextlib.contextmanager
def opened(folder: Folder, name: str) -> Iterator[BinaryIO]:
    """Open a file of a checkpoint for reading. In a local folder it must be a regular file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if isinstance(folder, Path):
            file: BinaryIO = os.fdopen(open_file(folder, name), "rb")
        else:
            file = (folder / name).open("rb")
        with file:
            yield file
    except ShardError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise _unreadable(folder / name, error) from None


def size_of(folder: Folder, name: str) -> int:
    """Return the size of a file of a checkpoint in bytes.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return int((folder / name).stat().st_size)
    except OSError as error:
        raise _unreadable(folder / name, error) from None


def read_layout(folder: Folder, files: Iterable[str]) -> StoredTensors:
    """Return the tensors in some files of a checkpoint, from the headers of these files.

    Raises:
        UserError: A file cannot be read, or the files do not hold every tensor whole, once.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    pieces: dict[str, list[Piece]] = {}
    for name in files:
        with opened(folder, name) as file:
            try:
                _, entries, metadata = read_header(file, size_of(folder, name))
                found = list(_pieces(name, entries, metadata))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{folder / name}: {error}") from None
        for tensor, (shape, dtype, piece) in found:
            if (
                shapes.setdefault(tensor, shape) != shape
                or dtypes.setdefault(tensor, dtype) != dtype
            ):
                raise UserError(
                    f"{folder / name}: {tensor[:200]} has another shape or type than in another "
                    "part; this checkpoint cannot be used"
                )
            pieces.setdefault(tensor, []).append(piece)
    tensors = {}
    for tensor, found_pieces in pieces.items():
        ordered = sorted(found_pieces, key=lambda piece: (piece.start, piece.length))
        ends = [piece.start + piece.length for piece in ordered]
        if [piece.start for piece in ordered] + [math.prod(shapes[tensor])] != [0, *ends]:
            raise UserError(
                f"{folder}: its parts do not hold {tensor[:200]} whole, once; this checkpoint "
                "cannot be used"
            )
        tensors[tensor] = StoredTensor(shapes[tensor], dtypes[tensor], tuple(ordered))
    return StoredTensors(folder, tensors)


def check_size(folder: Folder, name: str, record: FileRecord) -> None:
    """Compare a file with the size that the state says.

    Raises:
        UserError: The file cannot be read, or has another size.
    """
    size = size_of(folder, name)
    if record.num_bytes not in (None, size):
        raise UserError(
            f"{folder / name}: sha256 differs from state.json (it has {size} bytes and not "
            f"{record.num_bytes})"
        )


def check_file(folder: Folder, name: str, record: FileRecord) -> None:
    """Compare a file with its sha256, and its numbers with infinity, in one pass over the file.

    Raises:
        UserError: The file cannot be read, differs, or holds a value that is not finite.
    """
    path = folder / name
    check_size(folder, name, record)
    size = size_of(folder, name)
    digest = hashlib.sha256()
    odd, fault = None, None
    with opened(folder, name) as file:
        try:
            header, entries, _ = read_header(file, size)
        except ValueError as error:
            fault = str(error)
            file.seek(0)
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(chunk)
        else:
            digest.update(header)
            for entry in entries:
                for chunk in _chunks(file, entry.num_bytes):
                    digest.update(chunk)
                    if entry.dtype is torch.float32 and odd is None and not _are_finite(chunk):
                        odd = entry.name
    if digest.hexdigest() != record.sha256:
        raise UserError(f"{path}: sha256 differs from state.json")
    if fault:
        raise UserError(f"{path}: {fault}")
    if odd:
        tensor = odd.rpartition("@")[0] or odd
        raise UserError(f"{folder}: {tensor} is not finite; this checkpoint cannot be used")


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor `[length]` on the CPU, without a copy."""
    flat: Any = tensor.view(torch.uint8).numpy()
    return memoryview(flat)


def key_of(name: str, start: int) -> str:
    """Return the name that a range of a tensor has in a part: `NAME@START`."""
    return f"{name}@{start}"


def _unreadable(path: Folder, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error})")


def _pieces(
    file: str, entries: list[Entry], metadata: Mapping[str, str]
) -> Iterator[tuple[str, tuple[tuple[int, ...], torch.dtype, Piece]]]:
    """Return the ranges in a file. One of an older version holds whole tensors."""
    if SHAPES not in metadata:
        for entry in entries:
            length = math.prod(entry.shape)
            piece = Piece(file, entry.offset, 0, length)
            yield entry.name, (entry.shape, entry.dtype, piece)
        return
    shapes = json.loads(metadata[SHAPES])
    if not isinstance(shapes, dict):
        raise ValueError("no readable safetensors file (its shapes are damaged)")
    for entry in entries:
        name, _, start = entry.name.rpartition("@")
        shape: Any = shapes.get(name)
        is_range = (
            len(entry.shape) == 1
            and start.isascii()
            and start.isdigit()
            and isinstance(shape, list)
            and all(map(is_count, shape))
        )
        if not is_range:
            raise ValueError(f"no readable safetensors file ({entry.name[:200]!r} is no range)")
        piece = Piece(file, entry.offset, int(start), entry.shape[0])
        yield name, (tuple(shape), entry.dtype, piece)


def _chunks(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes:
        chunk = file.read(min(num_bytes, CHUNK_BYTES))
        if not chunk:
            return  # its sha256 differs
        num_bytes -= len(chunk)
        yield chunk


def _are_finite(chunk: bytes) -> bool:
    whole = len(chunk) - len(chunk) % 4
    return bool(np.isfinite(np.frombuffer(chunk[:whole], np.float32)).all())


def _read_into(file: BinaryIO, view: memoryview, path: Folder) -> None:
    while view:
        part = file.read(min(len(view), CHUNK_BYTES))
        if not part:
            raise UserError(f"{path}: is too short; this checkpoint cannot be used")
        view[: len(part)] = part
        view = view[len(part) :]
