"""Position tables: Fourier features of a grid, computed once and shared by all samples on it.

Another package computes the numbers. This module stores them, under a name that depends only on
the parameters of the computation.
"""

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy_format

from shards.digests import canonical_json, sha256_hex
from shards.errors import ShardError
from shards.files import AtomicFile
from shards.npy import decode_npy
from shards.plain import is_count, is_name, is_sha256
from shards.set_files import map_file

REMEDY = "run 'perceiver preprocess' again with the model's Fourier configuration"


@dataclass(frozen=True)
class PositionSpec:
    """The parameters that determine a position table (Perceiver, section 3.2).

    Attributes:
        shape: The grid in tokens: (height, width), (samples,), (frames, height, width).
        num_bands: The frequency bands for each axis.
        max_resolution: For each axis, twice the highest frequency, in cycles over [-1, 1].
        layout: The order of the channels: the position itself, then sines, then cosines.

    Raises:
        ShardError: The axes do not match, or a size is not positive.
    """

    shape: tuple[int, ...]
    num_bands: int
    max_resolution: tuple[float, ...]
    layout: str = "pos-sin-cos"

    def __post_init__(self) -> None:
        # Lists and integer resolutions give the same digest as tuples and floats.
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "max_resolution", tuple(map(float, self.max_resolution)))
        if not self.shape or len(self.shape) != len(self.max_resolution):
            raise ShardError(
                f"positions: {len(self.shape)} axes in shape {self.shape} and "
                f"{len(self.max_resolution)} in max_resolution {self.max_resolution}; "
                "give one resolution for each axis"
            )
        if min(self.shape) < 1 or self.num_bands < 1 or min(self.max_resolution) <= 0:
            raise ShardError(f"positions: {self} has a size that is not positive; correct it")

    @property
    def num_tokens(self) -> int:
        """The number of rows of the table."""
        return math.prod(self.shape)

    @property
    def num_channels(self) -> int:
        """The number of columns: for each axis one position, `num_bands` sines and cosines."""
        return len(self.shape) * (2 * self.num_bands + 1)

    @property
    def max_file_bytes(self) -> int:
        """An upper bound for the size of the table's file."""
        return self.num_tokens * self.num_channels * np.dtype(np.float32).itemsize + (1 << 16)

    @property
    def digest(self) -> str:
        """The table's name: the sha256 of this spec's canonical JSON, 64 hexadecimal digits."""
        return sha256_hex(canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Return this spec as a dictionary for JSON."""
        return asdict(self) | {
            "shape": list(self.shape),
            "max_resolution": list(self.max_resolution),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Read a spec that `to_dict` returned.

        Raises:
            ShardError: Fields are missing, unknown or of other types.
        """
        try:
            _check_fields(fields)
            return cls(**fields)
        except (TypeError, ValueError, AttributeError) as error:
            raise ShardError(f"positions: not a description of a table ({error})") from error

    def check_table(self, table: np.ndarray, where: str) -> None:
        """Raise ShardError, naming `where`, unless `table` is float32 [tokens, channels]."""
        expected = (self.num_tokens, self.num_channels)
        if table.shape != expected or table.dtype != np.float32:
            raise ShardError(
                f"{where}: {table.dtype} {list(table.shape)} instead of float32 {list(expected)} "
                f"for {self}; {REMEDY}"
            )


_MAX_AXES, _MAX_NUMBERS, _MAX_RESOLUTION = 16, 1 << 40, 1e30
"""The limits of a table: its axes, its numbers, and the resolution along an axis."""


def _check_fields(fields: Any) -> None:
    """Raise ValueError unless the fields of a spec have the right types and are not huge."""
    shape, bands = fields.get("shape"), fields.get("num_bands")
    resolution = fields.get("max_resolution")
    if not isinstance(shape, list) or not all(is_count(size, 1 << 31) for size in shape):
        raise ValueError("shape is not a list of sizes")
    if not is_count(bands, 1 << 20):
        raise ValueError("num_bands is not a number of bands")
    if not isinstance(resolution, list) or not all(map(_is_finite, resolution)):
        raise ValueError("max_resolution is not a list of finite numbers")
    if "layout" in fields and not is_name(fields["layout"]):
        raise ValueError("layout is not a name")
    if len(shape) > _MAX_AXES or math.prod(shape) * len(shape) * (2 * bands + 1) > _MAX_NUMBERS:
        raise ValueError("the table would be too large")


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < _MAX_RESOLUTION


def position_name(digest: str) -> str:
    """Return the path of a table within a shard set."""
    return f"positions/{digest}.npy"


def write_position_table(root: Path, spec: PositionSpec, table: np.ndarray) -> Path:
    """Store a position table atomically.

    Args:
        root: The folder of the set.
        spec: The parameters of the table.
        table: float32 [tokens, channels].

    Returns:
        The path of the table's file.

    Raises:
        ShardError: The shape or dtype is not that of `spec`, or the file system fails.
    """
    path = root / position_name(spec.digest)
    data = encode_position_table(spec, table, str(path))
    with AtomicFile(path) as file:
        file.write(data)
    return path


def encode_position_table(spec: PositionSpec, table: np.ndarray, where: str) -> bytes:
    """Return the bytes of a position table's file.

    Args:
        spec: The parameters of the table.
        table: float32 [tokens, channels].
        where: The name of the file in errors.

    Raises:
        ShardError: The shape or dtype is not that of `spec`.
    """
    spec.check_table(table, where)
    file = io.BytesIO()
    npy_format.write_array(file, np.ascontiguousarray(table), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def read_position_table(
    root: Path, spec: PositionSpec | str, sha256: str | None = None
) -> np.ndarray:
    """Read a position table: float32 [tokens, channels], read-only and memory-mapped.

    Args:
        root: The folder of the set.
        spec: The parameters of the table, or its digest.
        sha256: The sha256 of the table's file, if known.

    Raises:
        ShardError: The table is missing or damaged, or has another sha256 or another shape.
    """
    digest = spec if isinstance(spec, str) else spec.digest
    if not is_sha256(digest):
        raise ShardError(f"{root}: {digest!r} is not the digest of a position table; {REMEDY}")
    path = root / position_name(digest)
    try:
        data = map_file(root, position_name(digest))
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such position table; {REMEDY}") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    return decode_position_table(data, spec, str(path), sha256)


def decode_position_table(
    data: bytes | memoryview, spec: PositionSpec | str, where: str, sha256: str | None = None
) -> np.ndarray:
    """Decode the file of a position table: float32 [tokens, channels].

    Args:
        data: The bytes of the file.
        spec: The parameters of the table, or its digest.
        where: The name of the file in errors.
        sha256: The sha256 of the file, if known.

    Raises:
        ShardError: The file is damaged, or has another sha256 or another shape.
    """
    if sha256 is not None and sha256_hex(data) != sha256:
        raise ShardError(f"{where}: sha256 differs from the manifest's; {REMEDY}")
    try:
        table = decode_npy(data)
    except ShardError as error:
        raise ShardError(f"{where}: damaged ({error}); {REMEDY}") from error
    if isinstance(spec, PositionSpec):
        spec.check_table(table, where)
    return table
