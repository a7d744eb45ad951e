"""Read PLY files, text and binary: points and polygons among elements of any kind."""

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.points.format import PointsFormat
from pipeline.media.points.ply_binary import BinaryBody
from pipeline.media.points.ply_header import Element, read_header, short
from pipeline.media.points.ply_text import TextBody
from pipeline.media.points.polygons import check_counts, corner_numbers, triangles

AXES = ("x", "y", "z")
CORNERS = ("vertex_index", "vertex_indices")
"""The names that exporters give to the list of a face's corners."""


def read_ply(data: bytes, fmt: PointsFormat) -> tuple[np.ndarray, np.ndarray]:
    """Return the points, float64 `[points, 3]`, and the triangles, int64 `[faces, 3]`.

    Raises:
        MediaError: The file is damaged, cut short or longer than its header says, has strips of
            triangles, or has more faces or points than `fmt` allows.
    """
    header = read_header(data)
    properties = [_wanted(element, fmt) for element in header.elements]
    for element in header.elements:
        check_counts(
            element.count if element.name == "face" else 0,
            element.count if element.name == "vertex" else 0,
            fmt,
        )
    body: TextBody | BinaryBody
    if header.order is None:
        body = TextBody(data[header.num_bytes :])
    else:
        body = BinaryBody(data, header.num_bytes, header.order, fmt)
    points, faces = np.empty((0, 3)), np.empty((0, 3), np.int64)
    for element, names in zip(header.elements, properties, strict=True):
        read = body.read(element, names)
        if element.name == "vertex":
            points = np.stack([read[axis][0].astype(np.float64) for axis in AXES], axis=1)
        elif element.name == "face" and element.count:
            corners, counts = read[names[0]]
            faces = triangles(corner_numbers(corners), counts, fmt)
    body.check_end()
    return points, faces


def _wanted(element: Element, fmt: PointsFormat) -> tuple[str, ...]:
    """Return the properties that the geometry needs."""
    if element.name == "tristrips" and element.count and fmt.sample != "points":
        raise MediaError("its faces are strips of triangles, which are not read; save it as faces")
    if element.name == "vertex":
        for axis in AXES:
            if axis not in [each.name for each in element.properties if each.count_type is None]:
                raise MediaError(f"its vertices have no {axis}")
        return AXES
    if element.name != "face" or not element.count:
        return ()
    lists = [each for each in element.properties if each.count_type is not None]
    if len(element.properties) > 1:
        lists = [each for each in lists if each.name in CORNERS]
    if not lists:
        raise MediaError("its faces have no vertex_indices")
    if lists[0].type[0] == "f":
        raise MediaError(f"its faces' {short(lists[0].name)} are not whole numbers")
    return (lists[0].name,)
