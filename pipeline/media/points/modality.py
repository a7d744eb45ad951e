"""The modality `points`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.media.modality import Conversion, Modality, unchanged, words
from pipeline.media.points.decode import decode_points
from pipeline.media.points.format import NUM_DIMS, PointsFormat, PointsFourier
from pipeline.media.points.fourier import point_features

_MESH = b"""\
v 0 0 0
v 1 0 0
v 0 1 0
v 0 0 1
f 1 3 2
f 1 2 4
f 2 3 4
f 3 1 4
"""


class PointsModality(Modality[PointsFormat]):
    """Point clouds, float16 `[points, 3]`, and their Fourier features if these are stored."""

    format = PointsFormat
    extensions = words("glb gltf las laz npy obj off pcd ply pts stl xyz")
    inputs = "pipeline.inputs.points:PointsInputs"
    augmentation = "pipeline.training.augmentation.points:change_points"
    shortest = 1
    not_read = frozenset({"seed", "fourier", "max_faces", "max_points"})
    is_in_every_manifest = True

    def decode(
        self, data: bytes, fmt: PointsFormat, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the file's one cloud."""
        yield decode_points(data, fmt, strict=strict)

    def array_type(self, fmt: PointsFormat) -> tuple[np.dtype, tuple[int, ...]]:
        """Return float16 and `[num_points, 3]`."""
        return np.dtype(np.float16), (fmt.num_points, NUM_DIMS)

    def fits(self, array: np.ndarray, fmt: PointsFormat) -> bool:
        """Return whether the array holds coordinates, or features if the format stores them."""
        dtype, _ = self.array_type(fmt)
        return super().fits(array, fmt) or (
            fmt.fourier is not None
            and self._is_of(array, dtype, (fmt.num_points, fmt.fourier.channels))
        )

    def encode_members(self, array: np.ndarray, fmt: PointsFormat) -> dict[str, bytes]:
        """Encode the coordinates, and their features if the format stores them."""
        members = super().encode_members(array, fmt)
        if fmt.fourier is not None:
            members[fmt.fourier_member] = self.encode(point_features(array, fmt), fmt)
        return members

    def model_member(self, fmt: PointsFormat) -> str:
        """Return the name of the member that the model reads: features if stored, else points."""
        return fmt.member if fmt.fourier is None else fmt.fourier_member

    def model_array(self, array: np.ndarray, fmt: PointsFormat) -> np.ndarray:
        """Return the features if the format stores them, else the coordinates."""
        if fmt.fourier is not None and array.shape[1] == NUM_DIMS:
            return point_features(array, fmt)
        return array

    def from_dict(self, fields: Mapping[str, Any]) -> PointsFormat:
        """Return the format. In `fields`, `fourier` is a dictionary or None."""
        fourier = fields["fourier"]
        read = None if fourier is None else PointsFourier(**fourier)
        return PointsFormat(**{**fields, "fourier": read})

    def compared(self, stored: PointsFormat, fmt: PointsFormat) -> frozenset[str]:
        """Return the fields that must be equal, without `sample` if either format has `auto`.

        With `sample: auto`, the result depends on whether a file has faces.
        """
        fields = super().compared(stored, fmt)
        return fields - {"sample"} if "auto" in (stored.sample, fmt.sample) else fields

    def conversion(self, stored: PointsFormat, fmt: PointsFormat) -> Conversion:
        """Read a set's stored features if they are the model's; else start from its coordinates."""
        if stored.fourier == fmt.fourier:
            return Conversion(stored, unchanged)
        read = replace(stored, fourier=None)
        if fmt.fourier is None:
            return Conversion(read, unchanged)
        return Conversion(read, partial(point_features, fmt=fmt))

    def example(self, fmt: PointsFormat) -> bytes:
        """Return a tetrahedron as OBJ."""
        return _MESH
