"""Every modality from raw files, listings and tars to samples, through Ray and the sandbox."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import trimesh
from PIL import Image
from small_media import film, grey_frames, tone

from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.media.points.fourier import point_features
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from pipeline.training.train import train
from shards import RawSample, ShardReader, ShardSet, decode_npy, verify

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make_config(folder: Path, train: Path, model: str, *data: str) -> Config:
    tree = [
        "name: any",
        f"output: {folder / 'out'}",
        "data:",
        f"  train: {train}",
        *(f"  {line}" for line in data),
        "model:",
        f"  {model}",
        "  encoder: {num_latents: 8, latent_dim: 32, num_blocks: 1, num_cross_attends: 1}",
        "training: {batch_size: 2, epochs: 1, schedule: {warmup_epochs: 0}}",
        "cluster: {num_workers: 0}",
        "tracking: {system_metrics: false}",
    ]
    path = folder / "config.yaml"
    path.write_text("\n".join(tree))
    return load_config(str(path), [])


def samples_of(shards: str, split: str = "train") -> dict[str, list[RawSample]]:
    """The samples of each source, in the order of their parts."""
    assert verify(shards) == []
    reader = ShardReader(ShardSet.open(shards), split)
    found: dict[str, list[RawSample]] = {}
    for number in range(len(reader)):
        sample = reader.read(number)
        found.setdefault(sample.source_uri, []).append(sample)
    for parts in found.values():
        parts.sort(key=lambda sample: json.loads(bytes(sample.members["json"])).get("part", 0))
    return found


def array(sample: RawSample, member: str) -> np.ndarray:
    return decode_npy(sample.members[member])


def test_films_are_cut_into_clips_with_their_sound(tmp_path: Path, console: Console) -> None:
    raw = tmp_path / "raw"
    for label, level in (("dark", 40), ("light", 200)):
        (raw / label).mkdir(parents=True)
        frames = grey_frames([level] * 50)
        (raw / label / "film.mp4").write_bytes(film(frames, sound=tone(2.0, 48_000)))
    (raw / "dark" / "cut.mp4").write_bytes((raw / "dark" / "film.mp4").read_bytes()[:1000])
    config = make_config(
        tmp_path, raw,
        "modalities: {video: {adapter: {kind: space_time_patches}}, "
        "audio: {adapter: {kind: chunks}}}",
        "video: {num_frames: 4, height: 16, width: 16, frames_per_second: 8, clips: all}",
        "audio: {sample_rate: 8000, seconds: 0.5}",
    )  # fmt: skip
    result = preprocess(config, console)
    assert [row["source"] for row in result["quarantined"]] == ["train/dark/cut"]
    found = samples_of(result["shards"])
    assert {uri: len(clips) for uri, clips in found.items()} == {
        "train/dark/film": 4, "train/light/film": 4,
    }  # fmt: skip
    for uri, clips in found.items():
        for clip in clips:
            frames = array(clip, "video.npy")
            assert frames.shape == (4, 16, 16, 3)
            assert abs(frames.mean() - (40 if "dark" in uri else 200)) < 8
            sound = array(clip, "audio.npy")
            assert sound.dtype == np.int16 and len(sound) == 4000 and abs(sound).max() > 8000
    assert len({clip.key for clips in found.values() for clip in clips}) == 8
    specs = ShardSet.open(result["shards"]).manifest.positions.values()
    assert {spec.shape for spec in specs} == {(2, 2, 2), (32,)}


def test_meshes_become_points_with_their_own_fourier_features(
    tmp_path: Path, console: Console
) -> None:
    raw = tmp_path / "raw"
    shapes = {"box": trimesh.creation.box(), "ball": trimesh.creation.icosphere(subdivisions=2)}
    for name, mesh in shapes.items():
        (raw / name).mkdir(parents=True)
        for suffix in ("obj", "ply", "off", "stl", "glb"):
            mesh.export(raw / name / f"mesh.{suffix}")
    config = make_config(
        tmp_path, raw, "adapter: {kind: points, num_bands: 4, max_resolution: 20.0}",
        "points: {num_points: 64, fourier: {num_bands: 4, max_resolution: 20.0}}",
    )  # fmt: skip
    found = samples_of(preprocess(config, console)["shards"])
    assert len(found) == 10
    for (sample,) in found.values():
        points = array(sample, "points.npy")
        assert points.shape == (64, 3) and points.dtype == np.float16
        stored = array(sample, "points.fourier.npy")
        assert stored.shape == (64, 27)
        expected = point_features(points, config.data.points)
        np.testing.assert_array_equal(stored, expected)


def test_texts_of_a_csv_are_cut_with_overlap_and_have_several_labels(
    tmp_path: Path, console: Console
) -> None:
    texts = {"a": ("x" * 100 + "y" * 50, "short;both"), "b": ("Grüße", "both"), "c": ("z", "")}
    rows = [f'{key},"{text}","{labels}"' for key, (text, labels) in texts.items()]
    (tmp_path / "list.csv").write_text("\n".join(["id,body,tags", *rows]))
    config = make_config(
        tmp_path, tmp_path / "list.csv", "adapter: {kind: token_embedding, num_channels: 16}",
        "text: {max_length: 64, overlap: 16, cut: all}",
        "columns: {key: id, text: body}",
        "target: {kind: multi_label, column: tags}",
    )  # fmt: skip
    result = preprocess(config, console)
    assert result["classes"] == ["both", "short"]
    found = samples_of(result["shards"])
    pieces = [bytes(array(sample, "text.npy")).decode() for sample in found["train/a"]]
    whole = texts["a"][0]
    assert pieces == [whole[:64], whole[48:112], whole[96:]]
    assert bytes(array(found["train/b"][0], "text.npy")).decode() == "Grüße"
    labels = {uri: array(parts[0], "target.npy").tolist() for uri, parts in found.items()}
    assert labels["train/a"] == [1, 1] and labels["train/b"] == [1, 0]


def test_rows_of_a_parquet_file_with_missing_values_and_a_saved_vocabulary(
    tmp_path: Path, console: Console
) -> None:
    table = pa.table(
        {
            "weight": [1.0, None, 3.0, 5.0],
            "colour": ["red", "blue", None, "red"],
            "kind": ["cat", "dog", "cat", "dog"],
            "price": [0.5, 1.5, 2.5, 3.5],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    config = make_config(
        tmp_path, tmp_path / "rows.parquet", "adapter: {kind: columns}",
        "table: {numeric: [weight], categorical: [colour, kind]}",
        "target: {kind: regression, column: price}",
    )  # fmt: skip
    result = preprocess(config, console)
    vocabulary = ShardSet.open(result["shards"]).manifest.config["vocabulary"]
    assert vocabulary["categories"] == {"colour": ["blue", "red"], "kind": ["cat", "dog"]}
    assert vocabulary["mean"] == [3.0]
    found = [sample for (sample,) in samples_of(result["shards"]).values()]
    rows = {float(array(sample, "target.npy")[0]): array(sample, "table.npy") for sample in found}
    np.testing.assert_array_equal(rows[0.5], [1.0, 1.0, 0.0])
    np.testing.assert_array_equal(rows[1.5], [np.nan, 0.0, 1.0])
    np.testing.assert_array_equal(rows[2.5], [3.0, np.nan, 0.0])


def test_tars_of_others_are_read_where_they_lie(tmp_path: Path, console: Console) -> None:
    with tarfile.open(tmp_path / "set-00.tar", "w") as tar:
        for number in range(6):
            picture = io.BytesIO()
            Image.new("RGB", (20, 20), (40 * number,) * 3).save(picture, "PNG")
            for name, data in (
                (f"pics/{number:03d}.png", picture.getvalue()),
                (f"pics/{number:03d}.cls", str(number % 2).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    config = make_config(
        tmp_path, tmp_path / "set-00.tar", "adapter: {kind: pixels}",
        "image: {height: 20, width: 20}",
    )  # fmt: skip
    result = preprocess(config, console)
    found = samples_of(result["shards"])
    assert len(found) == 6
    for (sample,) in found.values():
        shade = int(array(sample, "image.npy")[0, 0, 0])
        assert sample.target == shade // 40 % 2


def test_files_of_one_name_are_one_sample_and_may_lack_what_the_configuration_says(
    tmp_path: Path, console: Console
) -> None:
    raw = tmp_path / "raw"
    for label in ("one", "two"):
        (raw / label).mkdir(parents=True)
        for number in range(3):
            stem = raw / label / f"{number:04d}"
            Image.new("RGB", (16, 16), (90, 90, 90)).save(stem.with_suffix(".jpg"))
            stem.with_suffix(".txt").write_text(f"{label} {number}")
            if number:
                soundfile.write(stem.with_suffix(".wav"), tone(0.5, 8000), 8000)
    (raw / "two" / "0002.txt").unlink()
    model = (
        "modalities: {image: {adapter: {kind: pixels}}, audio: {adapter: {kind: chunks}}, "
        "text: {adapter: {kind: token_embedding, num_channels: 16}}}"
    )
    sections = (
        "image: {height: 16, width: 16}",
        "audio: {sample_rate: 8000, seconds: 0.5, encoding: flac}",
        "text: {max_length: 16}",
    )
    config = make_config(tmp_path, raw, model, *sections, "allow_missing: [audio]")
    result = preprocess(config, console)
    assert [row["source"] for row in result["quarantined"]] == ["train/two/0002"]
    assert "text" in result["quarantined"][0]["reason"]
    found = samples_of(result["shards"])
    members: dict[str, Any] = {uri: set(parts[0].members) for uri, parts in found.items()}
    assert members["train/one/0000"] == {"image.npy", "text.npy", "cls", "json"}
    assert members["train/one/0001"] == {"image.npy", "audio.flac", "text.npy", "cls", "json"}
    assert bytes(array(found["train/one/0001"][0], "text.npy")) == b"one 1"

    trained = train(config, console)
    assert np.isfinite(trained["metrics"]["train_loss"])
    assert not trained["bad_samples"]


def test_a_set_without_targets_needs_an_objective(tmp_path: Path, console: Console) -> None:
    (tmp_path / "list.csv").write_text("body,score\nabcd,1.5\nefgh,2.5\n")
    config = make_config(
        tmp_path, tmp_path / "list.csv", "adapter: {kind: token_embedding, num_channels: 16}",
        "text: {max_length: 64}", "columns: {text: body}",
        "target: {kind: none}",
    )  # fmt: skip
    assert preprocess(config, console)["counts"] == {"train": 2}
    with pytest.raises(
        UserError, match=r"objective\.kind is missing: data\.target\.kind is 'none'"
    ):
        train(config, console)
