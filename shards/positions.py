"""Position tables: Fourier features of a grid, computed once and shared by every sample on it.

The numbers are computed elsewhere; here they are named by what they were computed from, and stored.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy_format

from shards.digests import canonical_json, sha256_hex
from shards.errors import ShardError
from shards.files import AtomicFile

REMEDY = "run 'perceiver preprocess' again with the model's Fourier configuration"


@dataclass(frozen=True)
class PositionSpec:
    """What determines a position table (Perceiver, section 3.2).

    Attributes:
        shape: the grid, in tokens: (height, width), (samples,), (frames, height, width).
        num_bands: frequency bands for each axis.
        max_resolution: for each axis, twice the highest frequency, in cycles over [-1, 1].
        layout: order of the channels: the position itself, then sines, then cosines.

    Raises:
        ShardError: axes that do not match, or sizes that are not positive.
    """

    shape: tuple[int, ...]
    num_bands: int
    max_resolution: tuple[float, ...]
    layout: str = "pos-sin-cos"

    def __post_init__(self) -> None:
        # Lists and whole-number resolutions name the same table as tuples and floats.
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
        """Rows of the table."""
        return math.prod(self.shape)

    @property
    def num_channels(self) -> int:
        """Columns of the table: for each axis a position, `num_bands` sines and cosines."""
        return len(self.shape) * (2 * self.num_bands + 1)

    @property
    def digest(self) -> str:
        """The table's name: sha256 of the canonical JSON of this spec, 64 hexadecimal digits."""
        return sha256_hex(canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """This spec as JSON holds it."""
        return asdict(self) | {
            "shape": list(self.shape),
            "max_resolution": list(self.max_resolution),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The spec that `to_dict` gave.

        Raises:
            ShardError: fields are missing, unknown or of other types.
        """
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ShardError(f"positions: {fields} is no position spec ({error})") from error

    def check_table(self, table: np.ndarray, where: str) -> None:
        """Raises ShardError unless `table` is float32 [tokens, channels]; `where` names it."""
        expected = (self.num_tokens, self.num_channels)
        if table.shape != expected or table.dtype != np.float32:
            raise ShardError(
                f"{where}: {table.dtype} {list(table.shape)} instead of float32 {list(expected)} "
                f"for {self}; {REMEDY}"
            )


def position_name(digest: str) -> str:
    """The table's path within a shard set."""
    return f"positions/{digest}.npy"


def write_position_table(root: Path, spec: PositionSpec, table: np.ndarray) -> Path:
    """Stores `table`, float32 [tokens, channels], atomically in `root`; the path of its file.

    Raises:
        ShardError: another shape or dtype than `spec` says, or the file system refuses.
    """
    path = root / position_name(spec.digest)
    spec.check_table(table, str(path))
    with AtomicFile(path) as file:
        npy_format.write_array(
            file, np.ascontiguousarray(table), version=(1, 0), allow_pickle=False
        )
    return path


def read_position_table(root: Path, spec: PositionSpec | str) -> np.ndarray:
    """The table of `spec` or digest: float32 [tokens, channels], read-only, memory-mapped.

    Raises:
        ShardError: missing, damaged, or of another shape than `spec` says.
    """
    path = root / position_name(spec if isinstance(spec, str) else spec.digest)
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no such position table; {REMEDY}") from error
    except (ValueError, EOFError) as error:
        raise ShardError(f"{path}: damaged ({error}); {REMEDY}") from error
    if isinstance(spec, PositionSpec):
        spec.check_table(table, str(path))
    return table
