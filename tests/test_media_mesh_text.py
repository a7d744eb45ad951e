"""OBJ, glTF, OFF, STL and text as exporters write them, and what trimesh would pass over."""

import numpy as np
import pytest
import trimesh
from point_files import CLOUD, CORNERS, SURFACE, exported, glb, mesh, npy, reason

from pipeline.media import PointsFormat, decode

# --- what trimesh would pass over ---


def test_obj_faces_may_count_back_and_lines_may_be_indented():
    low = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
    high = low.replace(" 0\n", " 10\n")
    plain = f"{low}f 1 2 3 4\n{high}f 5 6 7 8\n"
    for text in (
        plain,
        f"{low}f -4 -3 -2 -1\n{high}f -4 -3 -2 -1\n",
        f"{low}\tf\t1 2 3 4\n{high}  f 5 6 7 8\n",
        plain.replace("\n", "\r"),
        "\ufeff" + plain,
    ):
        found = decode(text.encode(), SURFACE)
        assert 0.45 < (found[:, 2] > 0).mean() < 0.55, text
    assert "not there" in reason(f"{low}f -5 -3 -2\n".encode(), SURFACE)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (b'{"extensionsUsed":["KHR_draco_mesh_compression"]}', "KHR_draco_mesh_compression"),
        (
            b'{"extensionsUsed":["KHR_draco_mesh_compression","EXT_meshopt_compression",'
            b'"EXT_mesh_gpu_instancing"]}',
            "EXT_mesh_gpu_instancing",
        ),
        (b'{"meshes":[{"primitives":[],"weights":[0.5]}]}', "morph targets"),
        (b'{"accessors":[{"count":3,"sparse":{}}]}', "sparse accessors"),
        (
            b'{"accessors":[{"count":3,"normalized":true}],'
            b'"meshes":[{"primitives":[{"attributes":{"POSITION":0}}]}]}',
            "normalized integers",
        ),
    ],
)
def test_glb_features_that_are_not_read_are_refused_by_name(tree, told):
    assert told in reason(glb(tree), SURFACE)


@pytest.mark.parametrize("unit_cube", [True, False])
def test_nothing_that_is_not_finite_is_stored(unit_cube):
    fmt = PointsFormat(num_points=100, sample="points", unit_cube=unit_cube)
    huge = np.full((4, 3), 1e308)
    huge[0] = -1e308
    huge[1, 0] = 1.5e308
    assert "coordinates" in reason(npy(huge), fmt)


def test_points_that_coincide_become_zero():
    assert not decode(npy(np.tile([0.1, 0.7, 0.3], (20, 1))), CLOUD).any()


def test_commas_beside_semicolons_are_decimal_points():
    german = "0,5;2,5;3,5\n1,5;2,5;3,5\n1,5;4,5;3,5\n"
    english = german.replace(",", ".").replace(";", ", ")
    assert np.array_equal(decode(german.encode(), CLOUD), decode(english.encode(), CLOUD))


# --- OFF, STL and text ---


POINTS = "0 0 0\n2 0 0\n2 1 0\n0 1 0\n"
COLOURED = POINTS.replace("\n", " 255 0 0 255\n")


@pytest.mark.parametrize(
    "text",
    [
        f"OFF\n4 1 0\n{POINTS}4 0 1 2 3\n",
        f"# made by hand\n\nOFF\n4 1 0\n{POINTS}4 0 1 2 3\n",
        f"OFF 4 1 0 # counts\n# points\n{POINTS}# faces\n4 0 1 2 3 # the face\n",
        f"OFF\n4 1\n\n{POINTS}\n4 0 1 2 3 0.5 0 0 1\n",
        f"COFF\n4 1 0\n{COLOURED}4 0 1 2 3\n",
        f"STCNOFF\n4 1 0 # 1\n{POINTS}4 0 1 2 3\n",
        f"OFF\r\n4 1 0\r\n{POINTS}4 0 1 2 3\r\n",
    ],
)
def test_off_is_read_with_comments_colours_and_counts_anywhere(text):
    assert mesh(text.encode())[1] == [[0, 1, 2], [2, 3, 0]]
    assert mesh(text.encode())[0] == [[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("OFF BINARY\n\0\0\0\4", "binary OFF, which is not read"),
        (f"4OFF\n4 1 0\n{POINTS}", "4OFF, points of four coordinates"),
        ("nOFF\n3 4 1 0\n", "nOFF, points of any dimension"),
        (f"OFF\n4 one 0\n{POINTS}", "no numbers of points, faces and edges"),
        ("OFF\n", "no numbers of points, faces and edges"),
        (f"OFF\n5 0 0\n{POINTS}4 0 1 2 3\n", "point 5 has 5 numbers, the first 3"),
        (f"OFF\n4 1 0\n{POINTS}4 0 1 2\n", "face 1 has not the corners that it says"),
        (f"OFF\n4 1 0\n{POINTS}3 0 1 2.5\n", "a number that is not whole"),
        (f"OFF\n4 1 0\n{POINTS}3 0 1 4\n", "a face names a point that is not there"),
        (f"OFF\n4 1 0\n{POINTS}3 0 1 two\n", "face 1 is not of numbers: '3 0 1 two'"),
    ],
)
def test_off_that_cannot_be_read_exactly_is_refused(text, told):
    assert told in reason(text.encode(), SURFACE)


def stl_text(name: str, scale: int) -> str:
    lines = ""
    for corners in ((0, 1, 2), (0, 2, 3)):
        lines += "  facet normal 0 0 1\n    outer loop\n"
        for number in corners:
            x, y, z = (scale * coordinate for coordinate in CORNERS[number])
            lines += f"      vertex {x} {y:e} {z}\n"
        lines += "    endloop\n  endfacet\n"
    return f"solid {name}\n{lines}endsolid {name}\n"


def test_stl_text_is_read_in_capitals_and_of_several_solids():
    text = stl_text("a", 1) + stl_text("", 10)
    points, triangles = mesh(text.encode())
    assert triangles == np.arange(12).reshape(4, 3).tolist()
    assert points == [[s * c for c in CORNERS[n]] for s in (1, 10) for n in (0, 1, 2, 0, 2, 3)]
    for other in (text.upper(), text.replace("\n", "\r\n"), "\n  " + text, text.rstrip()):
        assert mesh(other.encode()) == (points, triangles)


def test_solids_follow_one_another_as_in_the_file():
    texts = [stl_text(name, 1 + at) for at, name in enumerate(["b", "a", "b", ""])]
    points, triangles = mesh("".join(texts).encode())
    parts = [mesh(text.encode()) for text in texts]
    expected = np.concatenate([np.array(points)[triangles] for points, triangles in parts])
    assert np.array_equal(np.array(points)[triangles], expected)


def test_stl_text_cut_short_is_refused_even_between_solids():
    text = stl_text("a", 1) + stl_text("b", 2)
    last = text.rindex("endsolid") + len("endsolid")
    between = range(text.index("endsolid") + 8, text.rindex("solid b"))  # one whole solid
    for end in set(range(len(stl_text("a", 1)), last)) - set(between):
        told = reason(text[:end].encode(), SURFACE)
        assert told.startswith(("cut short: ", "damaged STL: at line ")), end
    assert "at line 2 begins neither" in reason(
        text.replace("endfacet", "edge", 1).encode(), SURFACE
    )


def test_bytes_behind_a_binary_stl_are_passed_over_if_no_triangle_fits():
    data = exported(trimesh.creation.box(), "stl")
    assert mesh(data + b"made by hand\0") == mesh(data)
    named = b"solid facet".ljust(80) + data[80:]
    assert mesh(named + b"\n") == mesh(data)
    assert "none of OBJ" in reason(data + bytes(50), SURFACE)
    assert "none of OBJ" in reason(data[:-1], SURFACE)


@pytest.mark.parametrize(
    "head",
    [
        "x y z\n",
        "X,Y,Z\n",
        '"x";"y";"z"\n',
        "# written by hand\n// X Y Z\n4\n",
        "//X Y Z\n",
        "4\n# x y z\nx y z\n",
        "# a remark of y and x\n",
    ],
)
def test_text_may_name_its_columns(head):
    assert mesh((head + POINTS).encode())[0] == mesh(POINTS.encode())[0]


def test_columns_in_another_order_are_refused():
    for head in ("y x z\n", "id,x,y\n", "# z y x\n", "//Z X Y\n"):
        assert "x, y and z must come first" in reason((head + POINTS).encode(), CLOUD)
    assert "'lon lat height'" in reason(f"lon lat height\n{POINTS}".encode(), CLOUD)
    assert "cut short: 4 of 5 points" in reason(f"x y z\n5\n{POINTS}".encode(), CLOUD)
