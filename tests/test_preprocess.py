"""Raw media become a shard set: exact, repeatable, resumable; what cannot be used is named."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image
from sounds import encoded, tone

from perceiver_model.fourier import position_table
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.positions import position_spec
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from shards import ShardError, ShardReader, ShardSet, decode_npy, read_quarantine, verify

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_every_file_is_in_the_set_with_its_pixels_and_class(
    digit_shards: Path, digit_images: Path
) -> None:
    shard_set = ShardSet.open(digit_shards)
    seen = {}
    for split in ("train", "validation"):
        reader = ShardReader(shard_set, split)
        for number in range(len(reader)):
            sample = reader.read(number)
            seen[sample.source_uri.partition("/")[2]] = sample
    files = sorted((digit_images / "train").glob("*/*.png"))
    assert sorted(seen) == sorted(str(f.relative_to(digit_images / "train")) for f in files)
    for file in files:
        sample = seen[str(file.relative_to(digit_images / "train"))]
        pixels = decode_npy(sample.members["image.npy"])
        np.testing.assert_array_equal(pixels[:, :, 0], np.asarray(Image.open(file)))
        assert shard_set.manifest.classes[sample.target] == file.parent.name
    assert shard_set.manifest.class_counts["validation"] == {"0": 15, "1": 15, "7": 15}
    assert verify(digit_shards) == []


def test_plain_webdataset_and_tarfile_read_the_shards(digit_shards: Path) -> None:
    tars = sorted(digit_shards.glob("shard-*.tar"))
    samples = list(webdataset.WebDataset([str(t) for t in tars], shardshuffle=False))
    assert len(samples) == 300
    about = json.loads(samples[0]["json"])
    assert about["class"] == ["0", "1", "7"][int(samples[0]["cls"])]
    assert np.load(io.BytesIO(samples[0]["image.npy"])).shape == (28, 28, 1)
    with tarfile.open(tars[0]) as tar:
        assert len(tar.getmembers()) == 300  # three members for each of 100 samples


def test_the_set_holds_the_models_fourier_table(
    digit_shards: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    classifier = make_config(tmp_path).classifier(3)
    spec = position_spec(classifier)
    stored = ShardSet.open(digit_shards).position_table(spec)
    expected = position_table((14, 14), 8, (14, 14)).numpy()
    np.testing.assert_array_equal(stored, expected)


def test_the_same_input_gives_the_same_digest_elsewhere_and_in_other_tasks(
    digit_shards: Path, make_config: Callable[..., Config], tmp_path: Path, console: Console
) -> None:
    again = preprocess(make_config(tmp_path, "data.samples_per_shard=100"), console)
    assert again["digest"] == ShardSet.open(digit_shards).digest


def test_a_finished_set_is_skipped_and_a_file_that_is_cut_short_is_noticed(
    make_config: Callable[..., Config], tmp_path: Path, console: Console
) -> None:
    config = make_config(tmp_path)
    first = preprocess(config, console)
    second = preprocess(config, console)
    assert (first["skipped"], second["skipped"]) == (False, True)
    assert second["digest"] == first["digest"]
    tar = next(Path(first["shards"]).glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"shard-0000\d\.tar: has \d+ bytes instead of \d+.*--fresh"
    ):
        preprocess(config, console)
    assert preprocess(config, console, fresh=True)["digest"] == first["digest"]


def test_files_that_cannot_be_used_are_quarantined_with_their_reason(
    make_config: Callable[..., Config], copied_digits: Path, tmp_path: Path, console: Console
) -> None:
    train = copied_digits / "train"
    good = next((train / "0").glob("*.png")).read_bytes()
    (train / "0" / "cut.png").write_bytes(good[: len(good) // 2])
    (train / "0" / "empty.png").write_bytes(b"")
    (train / "1" / "notes.txt").write_text("not an image")
    (train / "README").write_text("beside the class folders")
    (train / "1" / ".hidden").write_text("no sample")
    result = preprocess(make_config(tmp_path, f"data.train={train}"), console)
    reasons = {row["source"]: row["reason"] for row in result["quarantined"]}
    sources = {source.rpartition("/")[2] for source in reasons}
    assert sources == {"cut.png", "empty.png", "notes.txt", "README"}
    assert sum(result["counts"].values()) == 300
    named = {key.rpartition("/")[2]: reason for key, reason in reasons.items()}
    assert named["empty.png"] == "the file is empty"
    assert named["notes.txt"] == "no image format that Pillow knows"
    assert named["README"] == "lies beside the class folders"
    rows = read_quarantine(Path(result["shards"]) / "quarantine.parquet")
    assert len(rows) == 4
    assert not any(str(tmp_path) in row.traceback for row in rows), "bytes depend on the place"


def test_too_many_bad_files_fail_the_run_and_leave_nothing(
    make_config: Callable[..., Config], copied_digits: Path, tmp_path: Path, console: Console
) -> None:
    train = copied_digits / "train"
    for number in range(10):
        (train / "0" / f"bad{number}.png").write_bytes(b"bad")
    output = tmp_path / "out"
    config = make_config(output, f"data.train={train}", "data.max_bad_fraction=0.01")
    (output / "mlflow.db").unlink()
    with pytest.raises(UserError, match=r"10 of 310 files \(3\.2%\).*max_bad_fraction=0\.01"):
        preprocess(config, console)
    assert [path for path in output.rglob("*") if path.is_file()] == []


def test_a_model_with_other_fourier_features_is_refused(
    digit_shards: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    from pipeline.training.open_shards import open_shards

    config = make_config(tmp_path, f"shards={digit_shards}", "model.positions.num_bands=4")
    with pytest.raises(ShardError, match=r"num_bands=4.*num_bands=8.*preprocess"):
        open_shards(config)


def test_recordings_of_every_format_become_int16_of_one_rate(
    tmp_path: Path, console: Console
) -> None:
    folder = tmp_path / "sounds"
    for label, frequency in (("low", 300.0), ("high", 2000.0)):
        (folder / label).mkdir(parents=True)
        sound = tone(frequency, 16_000, seconds=1.5)
        for suffix in ("wav", "flac", "ogg", "mp3"):
            soundfile.write(folder / label / f"tone.{suffix}", sound, 16_000)
        gsm = encoded(tone(frequency, 8_000, seconds=1.5), 8_000, format="RAW", subtype="GSM610")
        (folder / label / "tone.gsm").write_bytes(gsm)
    (folder / "low" / "broken.flac").write_bytes(b"fLaC" + bytes(50))
    config = load_config(
        "audio",
        [f"data.train={folder}", f"output={tmp_path / 'out'}", "data.validation=null",
         "data.audio.mel=null", "training.augment.mask_seconds=0", "training.augment.mask_bands=0",
         "training.augment.band_gain=0", "study=null", "cluster.num_workers=1"],
    )  # fmt: skip
    result = preprocess(config, console)
    assert result["counts"] == {"train": 10}
    assert [row["source"] for row in result["quarantined"]] == ["train/low/broken.flac"]
    reader = ShardReader(ShardSet.open(result["shards"]), "train")
    for number in range(10):
        sample = reader.read(number)
        sound = decode_npy(sample.members["audio.npy"])
        assert sound.dtype == np.int16
        assert abs(len(sound) - 24_000) < 1_500
        spectrum = np.abs(np.fft.rfft(sound.astype(float)))
        peak = np.argmax(spectrum) * 16_000 / len(sound)
        assert abs(peak - (300 if "/low/" in sample.source_uri else 2000)) < 20
