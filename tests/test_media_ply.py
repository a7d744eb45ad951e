"""PLY as exporters write it."""

import io
import re
import struct
import time

import numpy as np
import pytest
import trimesh
from point_files import CORNERS, SURFACE, mesh, reason

MIXED = [(0, 1, 2, 3), (1, 5, 2), (0, 1, 2, 4, 3)]
MIXED_AS_TRIANGLES = [(1, 5, 2), (0, 1, 2), (2, 3, 0), (0, 1, 2), (0, 2, 4), (0, 4, 3)]
PLY_FORMATS = ["ascii", "binary_little_endian", "binary_big_endian"]
TYPES = {"uchar": "u1", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8"}


def ply(order: str, elements: dict[str, tuple[list[str], list]], *, lines: str = "") -> bytes:
    """A PLY file; rows are of numbers and of lists, as their properties say."""
    header = f"ply\nformat {order} 1.0\n{lines}"
    body = b""
    for name, (properties, rows) in elements.items():
        header += f"element {name} {len(rows)}\n"
        header += "".join(f"property {each}\n" for each in properties)
        for row in rows:
            numbers = []
            for each, value in zip(properties, row, strict=True):
                kinds = each.split()[1:3] if each.startswith("list") else each.split()[:1]
                if len(kinds) == 2:
                    numbers.append((kinds[0], len(value)))
                values = value if len(kinds) == 2 else [value]
                numbers += [(kinds[-1], number) for number in values]
            if order == "ascii":
                body += (" ".join(str(number) for _, number in numbers) + "\n").encode()
            else:
                sign = "<" if order == "binary_little_endian" else ">"
                arrays = [np.array(number, sign + TYPES[kind]) for kind, number in numbers]
                body += b"".join(array.tobytes() for array in arrays)
    return header.encode() + b"end_header\n" + body


def mesh_ply(order: str, faces: list, *, lines: str = "", corners: str = "uchar int") -> bytes:
    return ply(
        order,
        {
            "vertex": (["float x", "float y", "float z"], CORNERS),
            "face": ([f"list {corners} vertex_indices"], [(face,) for face in faces]),
        },
        lines=lines,
    )


def as_lists(rows: list) -> list:
    return [list(row) for row in rows]


@pytest.mark.parametrize("order", PLY_FORMATS)
@pytest.mark.parametrize("faces", [MIXED, MIXED[:2], MIXED[::-1], MIXED[1:2] * 3, MIXED[:1] * 3])
def test_ply_faces_may_have_any_numbers_of_corners(order, faces):
    points, triangles = mesh(mesh_ply(order, faces))
    assert points == as_lists(CORNERS)
    fans = [(f[0], f[i], f[i + 1]) for f in faces for i in range(1, len(f) - 1)]
    turned = [min((a, b, c), (b, c, a), (c, a, b)) for a, b, c in triangles]
    assert sorted(turned) == sorted(min((a, b, c), (b, c, a), (c, a, b)) for a, b, c in fans)


@pytest.mark.parametrize("order", PLY_FORMATS)
def test_ply_triangles_come_in_trimeshs_order_on_which_draws_depend(order):
    assert mesh(mesh_ply(order, MIXED))[1] == as_lists(MIXED_AS_TRIANGLES)
    quads = [(0, 1, 2, 3), (1, 5, 4, 2)]
    loaded = trimesh.load_mesh(io.BytesIO(mesh_ply(order, quads)), "ply", process=False)
    assert mesh(mesh_ply(order, quads))[1] == loaded.faces.tolist()


@pytest.mark.parametrize("order", PLY_FORMATS)
def test_of_a_ply_all_but_points_and_corners_is_passed_over(order):
    elements = {
        "camera": (["float fov", "list uchar double pose"], [(1, [1, 2, 3]), (2, [])]),
        "face": (
            ["uchar red", "list uint uint vertex_index", "list uchar float texcoord", "int id"],
            [(7, face, [0.5] * 2 * len(face), 9) for face in MIXED],
        ),
        "vertex": (
            ["double nx", "double x", "double y", "uchar q", "double z", "list uchar int of"],
            [(9, x, y, 1, z, [5] * (x % 3)) for x, y, z in CORNERS],
        ),
        "edge": (["int vertex1", "int vertex2"], [(0, 1)]),
    }
    data = ply(order, elements, lines="comment element face 3\nobj_info none\n")
    assert mesh(data) == (as_lists(CORNERS), as_lists(MIXED_AS_TRIANGLES))
    for newline in (b"\r\n", b"\r"):
        header, body = data.split(b"end_header\n")
        told = (header + b"end_header\n").replace(b"\n", newline)
        assert mesh(told + body) == mesh(data)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_a_ply_may_have_the_types_that_trimesh_writes(encoding):
    """int64 and float16, which the library plyfile refuses to read."""
    box = trimesh.creation.box((2, 4, 8))
    box.vertex_attributes["label"] = np.arange(8)
    box.vertex_attributes["weight"] = np.arange(8).astype(np.float16)
    data = box.export(file_type="ply", encoding=encoding)
    assert b"property int64 label" in data and b"property float16 weight" in data
    points, triangles = mesh(data)
    assert np.allclose(points, box.vertices) and triangles == box.faces.tolist()


@pytest.mark.parametrize("order", PLY_FORMATS)
def test_a_ply_cut_at_any_byte_is_refused(order):
    data = mesh_ply(order, MIXED)
    body = data.index(b"end_header\n") + 11
    # Without its last digit or line end, text is a whole file still.
    for end in range(len(data) - (2 if order == "ascii" else 0)):
        told = reason(data[:end], SURFACE)
        assert end < body or re.match("cut short: [0-5] of [36]|damaged PLY: .* has not", told)
    more = f"more {'lines' if order == 'ascii' else 'bytes'} than its header says, by 1"
    assert more in reason(data + b"7", SURFACE)
    assert mesh(data + b"\r\n") == mesh(data)


def test_text_that_holds_fewer_faces_than_it_says_is_refused():
    faces = [(0, 1, 2)] * 47
    told = "cut short: 47 of 100 faces are there"
    data = mesh_ply("ascii", faces).replace(b"face 47", b"face 100")
    assert reason(data, SURFACE) == told
    lines = "".join(" ".join(map(str, point)) + "\n" for point in CORNERS) + "3 0 1 2\n" * 47
    assert reason(f"OFF\n6 100 0\n{lines}".encode(), SURFACE) == told
    assert "cut short: 53 of 60 points" in reason(f"OFF\n60 9 0\n{lines}".encode(), SURFACE)
    assert "more lines than its header" in reason(f"OFF\n6 46 0\n{lines}".encode(), SURFACE)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"element face 3", b"element face 1000000000", "more than max_faces"),
        (b"element face 3", b"element face 5000000", "cut short: 3 of 5000000 faces"),
        (b"element face 3", b"element face -3", "line 7 of its header: 'element face -3'"),
        (b"element face 3", b"element tristrips 3", "strips of triangles, which are not read"),
        (b"float z", b"float w", "its vertices have no z"),
        (b"float z", b"float x", "has two properties of one name"),
        (b"float z", b"quad z", "line 6 of its header: property 'quad z' is of no known type"),
        (b"list uchar", b"list float", "a list's count cannot be float"),
        (b"uchar int vertex", b"uchar float vertex", "are not whole numbers"),
        (b"format ", b"formats ", "is none of a header's lines"),
        (b"end_header", b"end_heade", "none of a header's lines"),
    ],
)
def test_ply_headers_that_cannot_be_are_refused(old, new, told):
    for order in PLY_FORMATS:
        assert told in reason(mesh_ply(order, MIXED).replace(old, new), SURFACE)


def test_a_million_mixed_faces_are_read_in_seconds():
    faces = np.tile(np.frombuffer(struct.pack("<B4iB3i", 4, 0, 1, 2, 3, 3, 1, 5, 2), "u1"), 500_000)
    small = mesh_ply("binary_little_endian", MIXED).split(b"end_header\n")
    header = small[0].replace(b"face 3", b"face 1000000") + b"end_header\n"
    before = time.process_time()
    _, triangles = mesh(header + small[1][:72] + faces.tobytes())
    assert time.process_time() - before < 20
    assert len(triangles) == 1_500_000 and triangles[-1] == [2, 3, 0]
