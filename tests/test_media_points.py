"""Meshes and point clouds to points: what is drawn, from which files, and with which features."""

import io
import math
import re
import struct
import sys
import time

import numpy as np
import pytest
import torch
import trimesh
from small_media import refusal

from perceiver_model.adapters.configs import PointsConfig, PointsInput
from perceiver_model.adapters.points import PointAdapter, to_unit_cube
from perceiver_model.adapters.points_config import default_max_resolution
from perceiver_model.fourier import fourier_features
from pipeline.inputs.model_input import model_adapter
from pipeline.media import PointsFormat, PointsFourier, decode, encode_members
from pipeline.media.points.fourier import point_features
from pipeline.media.points.meshes import read_geometry
from shards import decode_npy

SURFACE = PointsFormat(num_points=2000)
CLOUD = PointsFormat(num_points=100, sample="points")


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


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32).astype(np.float64)


# --- surfaces ---


@pytest.mark.parametrize("kind", ["obj", "ply", "off", "stl", "stl_ascii", "glb"])
def test_a_mesh_is_sampled_on_its_surface(kind):
    data = exported(trimesh.creation.box((2, 4, 8)), kind)
    points = decode(data, SURFACE)
    assert (points.dtype, points.shape) == (np.float16, (2000, 3))
    wide = points.astype(np.float64)
    # Every point lies on a side of the box, which fills the unit cube along z.
    sides = np.array([0.25, 0.5, 1.0])
    assert (np.abs(np.abs(wide) - sides).min(axis=1) < 0.06).all()
    assert np.abs(wide.mean(axis=0)).max() < 1e-3 and np.abs(wide).max() == 1


def test_sampling_is_uniform_by_area():
    # A sphere, made of triangles ten times smaller on one half.
    ball = trimesh.creation.icosphere(4)
    half = ball.triangles_center[:, 0] > 0
    fine = ball.submesh([np.flatnonzero(half)], append=True).subdivide().subdivide()
    coarse = ball.submesh([np.flatnonzero(~half)], append=True)
    whole = trimesh.util.concatenate([fine, coarse])
    points = decode(exported(whole, "stl"), PointsFormat(num_points=20_000))
    assert (points[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.02)
    # In a ball's surface, each coordinate is spread evenly.
    for axis in range(3):
        shares, _ = np.histogram(points[:, axis].astype(float), bins=8, range=(-0.8, 0.8))
        assert np.abs(shares / shares.sum() - 1 / 8).max() < 0.01


def test_what_is_drawn_depends_on_seed_and_content_alone():
    ball = exported(trimesh.creation.icosphere(2), "ply")
    first = decode(ball, SURFACE)
    assert np.array_equal(decode(ball, SURFACE, name="other.ply"), first)
    assert not np.array_equal(decode(ball, PointsFormat(num_points=2000, seed=1)), first)
    other = exported(trimesh.creation.icosphere(2).apply_scale(2), "ply")
    assert not np.array_equal(decode(other, SURFACE), first)


def test_instances_in_a_scene_stand_where_their_transforms_say():
    box = trimesh.creation.box((1, 1, 1))
    scene = trimesh.Scene()
    for place in (-10, 10):
        moved = trimesh.transformations.translation_matrix((place, 0, 0))
        scene.add_geometry(box, geom_name="box", node_name=f"box{place}", transform=moved)
    points = decode(exported(scene, "glb"), SURFACE).astype(float)
    assert (points[:, 0] < -0.8).mean() == pytest.approx(0.5, abs=0.05)
    assert (points[:, 0] > 0.8).mean() == pytest.approx(0.5, abs=0.05)


def test_modelnets_header_on_one_line_is_read():
    box = exported(trimesh.creation.box(), "off")
    lines = box.split(b"\n", 2)
    assert lines[0] == b"OFF"
    joined = b"OFF" + lines[1] + b"\n" + lines[2]
    assert decode(joined, SURFACE).shape == (2000, 3)


# --- clouds ---


def all_points(cloud: np.ndarray) -> np.ndarray:
    return to_unit_cube(torch.from_numpy(cloud)[None])[0].numpy().astype(np.float16)


def clouds(cloud: np.ndarray) -> dict[str, bytes]:
    text = "\n".join(" ".join(map(repr, row)) for row in cloud.tolist())
    more = np.concatenate([cloud, np.ones((len(cloud), 2))], axis=1)
    return {
        "ply": exported(trimesh.PointCloud(cloud), "ply"),
        "obj": "".join(f"v {x} {y} {z}\n" for x, y, z in cloud.tolist()).encode(),
        "xyz": f"# x y z\n{text}".encode(),
        "csv": text.replace(" ", ",").encode(),
        "pts": f"{len(cloud)}\n{text}".encode(),
        "npy": npy(cloud),
        "npy float32, fortran, 5 columns": npy(np.asfortranarray(more.astype(np.float32))),
    }


@pytest.mark.parametrize("kind", clouds(np.zeros((1, 3))))
def test_a_small_cloud_is_kept_whole_and_in_order(cloud, kind):
    points = decode(clouds(cloud)[kind], PointsFormat(num_points=500, sample="points"))
    assert np.abs(points.astype(float) - all_points(cloud).astype(float)).max() < 1e-3
    assert points.shape == (500, 3)


@pytest.mark.parametrize("minor", [2, 4])
def test_las_is_scaled_and_moved_as_its_header_says(cloud, minor):
    coordinates = np.round(cloud * 100) / 100 + [100, 200, 0]
    fmt = PointsFormat(num_points=500, sample="points")
    points = decode(las(coordinates, minor=minor), fmt)
    assert np.abs(points.astype(float) - all_points(coordinates).astype(float)).max() < 1e-3


def test_of_a_large_cloud_a_random_part_is_kept_in_order(cloud):
    raw = PointsFormat(num_points=100, sample="points", unit_cube=False)
    whole = cloud.astype(np.float16)
    points = decode(npy(cloud), raw)
    places = [int(np.flatnonzero((whole == point).all(axis=1))[0]) for point in points]
    assert places == sorted(places) and len(set(places)) == 100
    assert min(places) < 50 and max(places) > 450
    assert np.array_equal(decode(npy(cloud), raw), points)
    reseeded = PointsFormat(num_points=100, sample="points", unit_cube=False, seed=7)
    assert not np.array_equal(decode(npy(cloud), reseeded), points)


def test_a_meshs_points_are_its_vertices():
    ball = trimesh.creation.icosphere(1)
    points = decode(exported(ball, "ply"), PointsFormat(num_points=1000, sample="points"))
    assert len(points) == len(ball.vertices)
    assert np.allclose(points, ball.vertices / np.abs(ball.vertices).max(), atol=1e-3)


def test_points_cannot_stand_in_for_a_surface_that_is_asked_for(cloud):
    surface = PointsFormat(num_points=2000, sample="surface")
    for kind in ("ply", "xyz", "npy"):
        assert reason(clouds(cloud)[kind], surface) == (
            "it has points, but no faces to sample (set sample: auto or points to take the points)"
        )


def test_by_default_faces_decide_between_surface_and_points(cloud):
    box = exported(trimesh.creation.box((2, 4, 8)), "ply")
    default = PointsFormat(num_points=2000)
    for data, explicit in (
        (box, "surface"),
        *((data, "points") for data in clouds(cloud).values()),
    ):
        chosen = PointsFormat(num_points=2000, sample=explicit)
        assert np.array_equal(decode(data, default), decode(data, chosen))
    assert len(decode(box, PointsFormat(num_points=2000, sample="points"))) == 8


# --- the unit cube and float16 ---


def test_the_unit_cube_is_the_models(cloud):
    far = 1e6 + 300 * cloud
    points = decode(npy(far), PointsFormat(num_points=500, sample="points"))
    assert np.array_equal(points, all_points(far))
    assert np.array_equal(decode(npy(np.full((4, 3), 7.0)), CLOUD), np.zeros((4, 3), np.float16))


def test_coordinates_that_float16_cannot_hold_are_refused(cloud):
    raw = PointsFormat(num_points=500, sample="points", unit_cube=False)
    assert np.array_equal(decode(npy(cloud), raw), cloud.astype(np.float16))
    for spoiled in (cloud + 1000, cloud * 1e5):
        assert "float16 cannot hold its coordinates" in reason(npy(spoiled), raw)


# --- Fourier features ---


@pytest.mark.parametrize(("num_bands", "max_resolution"), [(64, 2240.0), (1, 8.0), (7, 33.5)])
def test_stored_features_are_the_models(cloud, num_bands, max_resolution):
    fourier = PointsFourier(num_bands=num_bands, max_resolution=max_resolution)
    fmt = PointsFormat(num_points=500, sample="points", fourier=fourier)
    points = decode(npy(cloud), fmt)
    members = encode_members(points, fmt)
    assert list(members) == ["points.npy", "points.fourier.npy"]
    stored = decode_npy(members["points.fourier.npy"])
    expected = fourier_features(torch.from_numpy(points), num_bands, (max_resolution,) * 3)
    assert (stored.dtype, stored.shape) == (np.float16, (500, fourier.channels))
    assert np.array_equal(stored[:, :3], points)
    assert np.abs(stored.astype(np.float32) - expected.numpy()).max() <= 2**-11
    assert (stored == expected.half().numpy()).mean() > 0.9999
    assert np.array_equal(decode_npy(members["points.npy"]), points)
    assert np.array_equal(point_features(points, fmt), stored)


@pytest.mark.parametrize("num_points", [1, 32, 1024, 2048])
def test_the_default_resolution_is_as_fine_as_the_points_and_the_models(num_points):
    """A resolution of r has samples 2 / r apart; on a unit sphere each point has 4 π / n."""
    fourier = PointsFourier()
    found = fourier.resolution(num_points)
    assert found == default_max_resolution(num_points)
    assert found == PointsConfig().resolution(PointsInput(num_points=num_points))
    assert found == pytest.approx(max(2, 2 / math.sqrt(4 * math.pi / num_points)))
    assert PointsFourier(max_resolution=2240).resolution(num_points) == 2240
    explicit = PointsConfig(max_resolution=2240)
    assert explicit.resolution(PointsInput(num_points=num_points)) == 2240


def test_stored_features_of_the_default_resolution_are_the_adapters(cloud):
    fmt = PointsFormat(num_points=500, fourier=PointsFourier(num_bands=8))
    points = decode(npy(cloud), fmt)
    stored = decode_npy(encode_members(points, fmt)["points.fourier.npy"])
    adapter = PointAdapter(PointsInput(num_points=500, unit_cube=False), PointsConfig(num_bands=8))
    read, _ = adapter(torch.from_numpy(points)[None])
    assert np.array_equal(stored, read[0].half().numpy())
    assert model_adapter(fmt, PointsConfig(num_bands=8)) == PointsConfig(num_bands=8)
    with pytest.raises(ValueError, match="max_resolution is 16, but data"):
        model_adapter(fmt, PointsConfig(num_bands=8, max_resolution=16))


# --- what is refused ---


def test_malformed_files_are_refused_in_one_line(cloud):
    assert reason(b"", CLOUD) == "the file is empty"
    unknown = "none of OBJ, PLY, OFF, STL, GLB, XYZ, NPY and LAS"
    assert reason(b"nothing of the kind", CLOUD) == unknown
    assert reason(bytes(1000), CLOUD) == unknown
    assert reason(b"PK\x03\x04" + bytes(1000), CLOUD) == unknown
    assert "cut short: 499 of 500" in reason(clouds(cloud)["pts"].rsplit(b"\n", 1)[0], CLOUD)
    assert "cut short: 499 of 500" in reason(las(cloud)[:-1], CLOUD)
    assert "LAZ" in reason(las(cloud, point_format=0x80), CLOUD)
    assert "its size is not" in reason(npy(cloud)[:-1], CLOUD)
    assert "not of numbers [points, 3]" in reason(npy(cloud[:, :2]), CLOUD)
    assert "not of numbers [points, 3]" in reason(npy(cloud.astype(str)), CLOUD)
    assert "damaged" in reason(b"1 2 3\n4 5\n", CLOUD)


@pytest.mark.parametrize("kind", ["ply", "glb", "stl"])
def test_meshes_cut_short_are_refused(kind):
    data = exported(trimesh.creation.icosphere(2), kind)
    for share in (0.2, 0.5, 0.9):
        assert reason(data[: int(share * len(data))], SURFACE)


def test_pickled_arrays_are_not_run():
    class Trap:
        def __reduce__(self):
            return sys.exit, (3,)

    assert "not of numbers" in reason(npy(np.array([[Trap()] * 3], dtype=object)), CLOUD)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinates_that_are_not_finite_are_refused(cloud, value):
    spoiled = cloud.copy()
    spoiled[3, 1] = value
    told = "it holds coordinates that are not finite"
    assert reason(npy(spoiled), CLOUD) == told
    assert reason(exported(trimesh.PointCloud(spoiled), "ply"), CLOUD) == told


def test_meshes_beyond_the_bounds_are_refused(cloud):
    ball = trimesh.creation.icosphere(2)
    assert reason(exported(ball, "stl"), PointsFormat(num_points=9, max_faces=319)) == (
        "320 faces, more than max_faces=319"
    )
    few = PointsFormat(num_points=9, sample="points", max_points=499)
    for kind in ("npy", "pts", "ply"):
        assert reason(clouds(cloud)[kind], few) == "500 points, more than max_points=499"


def test_instances_count_towards_the_bounds():
    scene = trimesh.Scene()
    for number in range(20):
        scene.add_geometry(trimesh.creation.box(), geom_name="box", node_name=f"n{number}")
    assert "more than max_faces=100" in reason(
        exported(scene, "glb"), PointsFormat(num_points=9, max_faces=100)
    )


def test_a_few_bytes_of_json_make_no_large_array():
    text = (
        b'{"asset":{"version":"2.0"},"scene":0,"scenes":[{"nodes":[0]}],"nodes":[{"mesh":0}],'
        b'"meshes":[{"primitives":[{"attributes":{"POSITION":0}}]}],'
        b'"accessors":[{"componentType":5126,"count":4000000000,"type":"VEC3"}]}'
    )
    assert "more than max_" in reason(glb(text), SURFACE)


def test_no_other_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    box = exported(trimesh.creation.box(), "obj")
    for data in (box, b"mtllib a.mtl\nusemtl m\n" + box):
        points = decode(data, SURFACE).astype(float)
        assert (np.abs(points).max(axis=1) > 0.8).all()  # they lie on the sides of the box
    text = b'{"asset":{"version":"2.0"},"buffers":[{"uri":"a.bin","byteLength":4}]}'
    (tmp_path / "a.bin").write_bytes(b"abcd")
    assert "another file, which is not read" in reason(glb(text), SURFACE)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_points": 0}, "num_points is 0; must be greater than or equal to 1"),
        ({"sample": "faces"}, "sample is 'faces'; must be 'auto', 'surface' or 'points'"),
        ({"seed": -1}, "seed is -1"),
        ({"max_faces": 1.5}, "max_faces is 1.5"),
        ({"fourier": PointsFourier(), "unit_cube": False}, "Fourier features need coordinates"),
    ],
)
def test_formats_that_cannot_be_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        PointsFormat(**{"num_points": 8, **fields})
    with pytest.raises(ValueError, match="num_bands is 0"):
        PointsFourier(num_bands=0)


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


# --- PLY, OFF, STL and text as exporters write them ---


CORNERS = [(0, 0, 0), (2, 0, 0), (2, 1, 0), (0, 1, 0), (1, 3, 0), (5, 0, 0)]
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


def mesh(data: bytes, **fields) -> tuple[list, list]:
    """What a file of one mesh holds: points and triangles."""
    [part] = read_geometry(data, PointsFormat(num_points=1, **fields)).parts
    return part.vertices.tolist(), part.faces.tolist()


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


def test_las_1_4_may_have_its_count_in_the_old_place_alone(cloud):
    fmt = PointsFormat(num_points=500, sample="points")
    data = bytearray(las(cloud, minor=4))
    whole = decode(bytes(data), fmt)
    struct.pack_into("<I", data, 107, 500)
    struct.pack_into("<Q", data, 247, 0)
    assert np.array_equal(decode(bytes(data), fmt), decode(las(cloud, minor=2), fmt))
    assert len(whole) == 500
    data[104] = 6  # a point format of 1.4, whose count stands in the new place alone
    assert reason(bytes(data), fmt) == "it has no points"
