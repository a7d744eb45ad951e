"""Files of points and meshes, and what of them is read or refused."""

import io
import struct

import numpy as np
from small_media import refusal

from pipeline.media import PointsFormat, decode
from pipeline.media.points.meshes import read_geometry

SURFACE = PointsFormat(num_points=2000)
CLOUD = PointsFormat(num_points=100, sample="points")
CORNERS = [(0, 0, 0), (2, 0, 0), (2, 1, 0), (0, 1, 0), (1, 3, 0), (5, 0, 0)]


def exported(geometry, kind: str) -> bytes:
    data = geometry.export(file_type=kind)
    return data.encode() if isinstance(data, str) else data


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def las(points: np.ndarray, *, minor: int = 2, point_format: int = 0, scale: float = 0.01) -> bytes:
    """A LAS file of these points, whose records have 20 bytes."""
    header = bytearray(375 if minor == 4 else 227)
    header[:4], header[24], header[25] = b"LASF", 1, minor
    struct.pack_into("<HI", header, 94, len(header), len(header))
    struct.pack_into("<BHI", header, 104, point_format, 20, 0 if minor == 4 else len(points))
    struct.pack_into("<6d", header, 131, scale, scale, scale, 100.0, 200.0, 0.0)
    if minor == 4:
        struct.pack_into("<Q", header, 247, len(points))
    whole = np.rint((points - [100, 200, 0]) / scale).astype("<i4")
    records = np.zeros((len(points), 20), np.uint8)
    records[:, :12] = whole.view(np.uint8).reshape(len(points), 12)
    return bytes(header) + records.tobytes()


def glb(tree: bytes) -> bytes:
    """A binary glTF file of this JSON and nothing else."""
    tree += b" " * (-len(tree) % 4)
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(tree), len(tree), 0x4E4F534A) + tree


def reason(data: bytes, fmt: PointsFormat) -> str:
    told = refusal(decode, data, fmt)
    assert "0x" not in told
    return told


def mesh(data: bytes, **fields) -> tuple[list, list]:
    """What a file of one mesh holds: points and triangles."""
    [part] = read_geometry(data, PointsFormat(num_points=1, **fields)).parts
    return part.vertices.tolist(), part.faces.tolist()
