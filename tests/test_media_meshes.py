"""OBJ and GLB as people have them: what readers pass over is read, or refused by name."""

import json
import struct

import numpy as np
import pytest
from small_media import refusal

from pipeline.media import PointsFormat, decode
from pipeline.media.points.meshes import read_geometry

FORMAT = PointsFormat(num_points=2000, unit_cube=False)
CORNERS = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def shape_of(text: str) -> tuple[int, list]:
    """Number of faces, and their corners' coordinates, sorted."""
    geometry = read_geometry(text.encode(), FORMAT)
    corners = np.concatenate(list(geometry.triangles()))
    return geometry.num_faces, sorted(map(tuple, corners.reshape(-1, 9).tolist()))


# --- OBJ ---


PLAIN = f"{CORNERS}f 1 2 3\nf 1 3 4\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{CORNERS}f 1 2 3 # note\nf 1 3 4\n",
        f"{CORNERS}f 1 2 3# note\nf 1 3 4 #f 1 2 4\n",
        f"{CORNERS}f 1 2 3 \t# with a - and a / sign\r\nf 1 3 4\r\n",
        PLAIN.replace("v 1 1 0", "v 1 1 0 # far corner"),
        PLAIN.replace("v 1 1 0", "v 1 1 0#"),
        PLAIN.replace("v 0 0 0\n", "v 0 0 0 0.5 0.5 0.5 # red\n"),
        f"{CORNERS}vn 0 0 1 # up\nvt 0 0 # left\nf 1/1/1 2/1/1 3/1/1 # a\nf 1/1/1 3/1/1 4/1/1\n",
        f"{CORNERS}f -4 -3 -2 # counted back\nf -4 -2 -1\n",
        f"{CORNERS}f 1 2 \\\n3\nf 1 3 4\n",
        f"{CORNERS}f 1 2 \\  \n 3\nf 1\\\n 3 4\n",
        f"{CORNERS}f 1 2 \\\r\n3\r\nf 1 3 4\r\n",
        PLAIN.replace("v 1 1 0", "v 1 \\\n1 \\\n0"),
        f"# made in C:\\models\\\n{PLAIN}",
        f"{CORNERS}fo 1 2 3\nfo 1 3 4\n",
        PLAIN.removesuffix("\n"),
        PLAIN + "# the end",
    ],
)  # fmt: skip
def test_comments_and_long_lines_of_an_obj_are_read(text):
    assert shape_of(text) == shape_of(PLAIN)


def test_a_sharp_in_a_name_is_no_comment():
    text = f"usemtl wood#1\n{CORNERS}f 1 2 3 # first\nusemtl wood#2\nf 1 3 4\no part # 3\n"
    assert shape_of(text) == shape_of(PLAIN)
    assert len(read_geometry(text.encode(), FORMAT).parts) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{CORNERS}f 0 1 2\nf 1 2 3\n", "a face names a point that is not there"),
        (f"{CORNERS}f 1//1 2//1 0//1\n", "a face names a point that is not there"),
        (f"{PLAIN}surf 0 1 0 1 1 2 3 4\n", "(surf), which are not read"),
        (f"{PLAIN}curv 0 1 1 2\n", "(curv), which are not read"),
    ],
)
def test_what_an_obj_must_not_hold_is_refused(text, told):
    assert refusal(decode, text.encode(), FORMAT).endswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{PLAIN}f 1 2", "cut short: its last line has 2 of 3 numbers"),
        (f"{PLAIN}v 1 2", "cut short: its last line has 2 of 3 numbers"),
        (f"{PLAIN}f 1 2 3\nf 1 \x02 4\n", "damaged: its line 8 holds the byte 2"),
        (f"{PLAIN}f 1 2 3\n" + "\0" * 900, "damaged: its line 8 holds the byte 0"),
    ],
)
def test_an_obj_that_is_cut_or_damaged_is_refused(text, told):
    padded = "o part\n# " + "x" * 5000 + "\n" + text  # beyond the head that tells what a file is
    assert refusal(decode, padded.encode(), FORMAT).startswith(told.replace("line 8", "line 10"))


def test_an_obj_has_as_many_points_and_faces_as_its_remarks_say():
    remarks = "####\n#\n# Vertices: 4\n# Faces: 2\n#\n####\n"
    assert shape_of(remarks + PLAIN) == shape_of(PLAIN)
    cut = (remarks + PLAIN).removesuffix("f 1 3 4\n")
    assert refusal(decode, cut.encode(), FORMAT) == "cut short: 1 of 2 faces are there"
    assert decode(cut.encode(), FORMAT, strict=False).shape == (2000, 3)


def test_a_binary_stl_that_is_cut_is_told_as_such():
    records = b"".join(struct.pack("<12fH", *range(k, k + 12), 0) for k in range(20))
    whole = bytes(80) + struct.pack("<I", 20) + records
    assert read_geometry(whole, FORMAT).num_faces == 20
    assert "cut short: 9 of 20 faces are there" in refusal(decode, whole[: 84 + 470], FORMAT)


# --- GLB ---

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
TRIANGLES = [0, 1, 2, 0, 2, 3]


def glb(primitives: list[tuple[int, list[int] | None]], change=lambda tree: None) -> bytes:
    """Squares, 10 apart in x, each drawn in its mode by these corners, None for all in order."""
    parts, views, accessors, drawn = [], [], [], []

    def accessor(values: np.ndarray, kind: str, code: int) -> int:
        offset = sum(len(part) for part in parts)
        content = values.tobytes()
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(content)})
        parts.append(content + bytes(-len(content) % 4))
        count = len(values)
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": code, "count": count, "type": kind}
        )
        return len(accessors) - 1

    for number, (mode, corners) in enumerate(primitives):
        place = SQUARE + np.array([10 * number, 0, 0], "<f4")
        primitive = {"mode": mode, "attributes": {"POSITION": accessor(place, "VEC3", 5126)}}
        if corners is not None:
            dtype, code = [("<u1", 5121), ("<u2", 5123), ("<u4", 5125)][number % 3]
            primitive["indices"] = accessor(np.array(corners, dtype), "SCALAR", code)
        drawn.append(primitive)
    binary = b"".join(parts)
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": drawn}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    change(tree)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<II", len(text), 0x4E4F534A) + text
    body += struct.pack("<II", len(binary), 0x004E4942) + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


@pytest.mark.parametrize(
    "primitives",
    [
        [(4, TRIANGLES), (6, [0, 1, 2, 3])],
        [(6, None), (4, TRIANGLES)],
        [(6, [0, 1, 2, 3]), (6, None)],
        [(5, [0, 1, 3, 2]), (6, [1, 2, 3, 0])],
    ],
)
def test_fans_and_strips_are_read_as_the_triangles_that_they_are(primitives):
    data = glb(primitives)
    assert read_geometry(data, FORMAT).num_faces == 4
    points = decode(data, FORMAT).astype(float)
    assert 0.45 < (points[:, 0] > 5).mean() < 0.55
    # Uniform on both squares, so all their triangles are right.
    for axis in (0, 1):
        assert abs((points[:, axis] % 10).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (1, "primitives of mode 1 (lines), not read"),
        (2, "primitives of mode 2 (loops of lines), not read"),
        (3, "primitives of mode 3 (strips of lines), not read"),
        (7, "primitives of mode 7 (unknown), not read"),
    ],
)
def test_primitives_that_are_not_read_are_refused_by_name(mode, told):
    data = glb([(4, TRIANGLES), (mode, [0, 1, 2, 3])])
    assert refusal(decode, data, FORMAT).endswith(told)


def test_points_beside_triangles_are_refused_where_a_surface_is_sampled():
    mixed = glb([(4, TRIANGLES), (0, None)])
    assert "it mixes points with triangles" in refusal(decode, mixed, FORMAT)
    points = PointsFormat(num_points=9, unit_cube=False, sample="points")
    assert len(decode(mixed, points)) == 8
    assert len(decode(glb([(0, None)]), FORMAT)) == 4


def test_a_glb_that_declares_more_than_it_has_is_refused():
    data = glb([(4, TRIANGLES)])
    told = refusal(decode, data[:-8], FORMAT)
    assert told == f"cut short: {len(data) - 8} of {len(data)} bytes are there"

    def longer(kind: str, field: str):
        def change(tree: dict) -> None:
            tree[kind][0][field] += 400

        return change

    for kind, field in (("accessors", "count"), ("bufferViews", "byteOffset")):
        assert refusal(decode, glb([(4, TRIANGLES)], longer(kind, field)), FORMAT)

    def nowhere(tree: dict) -> None:
        del tree["accessors"][0]["bufferView"]

    assert "in no buffer" in refusal(decode, glb([(4, TRIANGLES)], nowhere), FORMAT)
