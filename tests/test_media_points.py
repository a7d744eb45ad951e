"""Meshes and point clouds to points: what is drawn, from which files, and with which features."""

import math
import struct
import sys

import numpy as np
import pytest
import torch
import trimesh
from point_files import CLOUD, SURFACE, exported, glb, las, npy, reason

from perceiver_model.adapters.configs import PointsConfig, PointsInput
from perceiver_model.adapters.points import PointAdapter, to_unit_cube
from perceiver_model.adapters.points_config import default_max_resolution
from perceiver_model.fourier import fourier_features
from pipeline.inputs.model_input import model_adapter
from pipeline.media import PointsFormat, PointsFourier, decode, encode_members
from pipeline.media.points.fourier import point_features
from shards import decode_npy


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
