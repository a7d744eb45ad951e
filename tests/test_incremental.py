"""A set is brought up to its sources: only what is new or changed is decoded."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.ledger import ledger_path
from pipeline.preprocess.preprocess import preprocess, retry_quarantine
from pipeline.runs.console import Console
from shards import ShardError, ShardReader, ShardSet, verify
from shards.files import exclusive_lock

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]


@pytest.fixture
def config(make_config: MakeConfig, copied_digits: Path, tmp_path: Path) -> Config:
    """Digits in shards of 100, of files that a test may change."""
    return make_config(
        tmp_path / "out", f"data.train={copied_digits / 'train'}", "data.samples_per_shard=100"
    )


def samples_of(shards: Path) -> dict[str, tuple[str, str, bytes]]:
    """split, key and pixels of each sample, by source."""
    shard_set = ShardSet.open(shards)
    found = {}
    for split in shard_set.manifest.counts:
        reader = ShardReader(shard_set, split)
        for number in range(len(reader)):
            sample = reader.read(number)
            assert sample.source_uri not in found, "a source is in the set twice"
            pixels = bytes(sample.members["image.npy"])
            found[sample.source_uri] = (split, sample.key, pixels)
    return found


def path_of(uri: str, config: Config) -> Path:
    return Path(config.data.train) / uri.partition("/")[2]


def test_new_files_become_new_shards_and_old_shards_stay_as_they_are(
    config: Config, copied_digits: Path, console: Console
) -> None:
    preprocess(config, console)
    shards = Path(config.shards_folder)
    before = samples_of(shards)
    tars = {path.name: path.read_bytes() for path in shards.glob("*.tar")}
    for number, file in enumerate(sorted((copied_digits / "test" / "7").glob("*.png"))):
        file.rename(copied_digits / "train" / "7" / f"new{number}.png")
    result = preprocess(config, console)
    assert (result["decoded"], result["skipped"]) == (20, False)
    after = samples_of(shards)
    assert {uri: after[uri] for uri in before} == before
    new = after.keys() - before.keys()
    assert len(new) == 20
    assert {after[uri][0] for uri in new} == {"train", "validation"}, "the held-out share is kept"
    assert tars.items() <= {path.name: path.read_bytes() for path in shards.glob("*.tar")}.items()
    assert verify(shards) == []
    assert preprocess(config, console)["skipped"]


def test_a_changed_file_is_decoded_again_and_its_old_sample_goes(
    config: Config, console: Console
) -> None:
    preprocess(config, console)
    shards = Path(config.shards_folder)
    before = samples_of(shards)
    uri = sorted(uri for uri in before if uri.startswith("train/"))[0]
    Image.new("L", (28, 28), 77).save(path_of(uri, config))
    result = preprocess(config, console)
    assert result["decoded"] == 1
    after = samples_of(shards)
    assert after[uri][2] != before[uri][2] and after[uri][2].endswith(bytes([77]) * 784)
    assert {u: s for u, s in after.items() if u != uri} == {
        u: s for u, s in before.items() if u != uri
    }
    assert verify(shards) == []


def test_a_removed_file_leaves_the_set(config: Config, console: Console) -> None:
    preprocess(config, console)
    before = samples_of(Path(config.shards_folder))
    gone = sorted(before)[:3]
    for uri in gone:
        path_of(uri, config).unlink()
    result = preprocess(config, console)
    assert result["decoded"] == 0
    after = samples_of(Path(config.shards_folder))
    assert after == {uri: sample for uri, sample in before.items() if uri not in gone}
    assert sum(result["counts"].values()) == 297


def test_a_file_written_again_with_the_same_content_is_not_decoded(
    config: Config, console: Console
) -> None:
    first = preprocess(config, console)
    for path in Path(config.data.train).rglob("*.png"):
        os.utime(path, ns=(1, 1))
    second = preprocess(config, console)
    assert (second["skipped"], second["decoded"]) == (True, 0)
    assert second["digest"] == first["digest"]


def test_without_its_ledger_the_set_itself_tells_what_it_was_made_from(
    config: Config, console: Console
) -> None:
    first = preprocess(config, console)
    ledger_path(Path(config.shards_folder)).unlink()
    assert preprocess(config, console)["digest"] == first["digest"]
    Image.new("L", (28, 28), 5).save(Path(config.data.train) / "0" / "new.png")
    ledger_path(Path(config.shards_folder)).unlink()
    assert preprocess(config, console)["decoded"] == 1


def test_sources_that_moved_are_known_again_by_their_content(
    config: Config, make_config: MakeConfig, console: Console, tmp_path: Path
) -> None:
    first = preprocess(config, console)
    shutil.copytree(config.data.train, tmp_path / "moved")  # with other times
    moved = make_config(
        tmp_path / "out", f"data.train={tmp_path / 'moved'}", "data.samples_per_shard=100"
    )
    second = preprocess(moved, console)
    assert (second["skipped"], second["decoded"]) == (True, 0)
    Image.new("L", (28, 28), 5).save(tmp_path / "moved" / "0" / "new.png")
    assert preprocess(moved, console)["decoded"] == 1
    (tmp_path / "moved" / "1" / "bad.png").write_bytes(b"no picture")
    again = retry_quarantine(preprocess(moved, console)["shards"], console)
    assert (again["decoded"], again["num_quarantined"]) == (1, 1)
    elsewhere = moved.model_copy(update={"name": "elsewhere"})
    assert ShardSet.open(first["shards"]).digest != first["digest"]
    (tmp_path / "moved" / "1" / "bad.png").unlink()
    (tmp_path / "moved" / "0" / "new.png").unlink()
    assert preprocess(elsewhere, console)["digest"] == first["digest"], "no path is in the digest"


def test_wholly_other_sources_are_refused_and_nothing_changes(
    config: Config, make_config: MakeConfig, console: Console, tmp_path: Path
) -> None:
    first = preprocess(config, console)
    for name in ("0", "1"):
        (tmp_path / "other" / name).mkdir(parents=True)
        for shade in range(20):
            Image.new("L", (28, 28), shade).save(tmp_path / "other" / name / f"{shade}.png")
    other = make_config(
        tmp_path / "out", f"data.train={tmp_path / 'other'}", "data.samples_per_shard=100"
    )
    with pytest.raises(UserError, match=r"none of which is left: data\.train was .*--fresh"):
        preprocess(other, console)
    assert ShardSet.open(first["shards"]).digest == first["digest"]


def test_a_retry_without_the_ledger_says_what_is_missing(config: Config, console: Console) -> None:
    (Path(config.data.train) / "1" / "bad.png").write_bytes(b"no picture")
    shards = Path(preprocess(config, console)["shards"])
    ledger_path(shards).unlink()
    with pytest.raises(UserError, match=r"sources\.parquet: is missing .* run 'perceiver prep"):
        retry_quarantine(str(shards), console)


def test_a_new_class_is_added_behind_the_others(config: Config, console: Console) -> None:
    preprocess(config, console)
    folder = Path(config.data.train) / "00-first-by-name"
    folder.mkdir()
    for shade in range(10):
        Image.new("L", (28, 28), shade).save(folder / f"{shade}.png")
    result = preprocess(config, console)
    assert result["classes"] == ["0", "1", "7", "00-first-by-name"]
    reader = ShardReader(ShardSet.open(result["shards"]), "train")
    for number in range(len(reader)):
        sample = reader.read(number)
        name = sample.source_uri.split("/")[1]
        assert result["classes"][sample.target] == name


def test_bad_files_are_not_tried_again_until_asked(config: Config, console: Console) -> None:
    bad = Path(config.data.train) / "1" / "bad.png"
    picture = io.BytesIO()
    Image.new("L", (28, 28), 200).save(picture, "PNG")
    bad.write_bytes(picture.getvalue()[:40])
    first = preprocess(config, console)
    assert first["num_quarantined"] == 1
    time = bad.stat().st_mtime_ns
    with pytest.raises(UserError, match="nothing is in quarantine"):
        retry_quarantine(_good_set(config, console), console)

    # The repair goes unseen by size and time, as when a decoder was mended instead.
    bad.write_bytes(picture.getvalue()[:40])
    os.utime(bad, ns=(time, time))
    assert preprocess(config, console)["skipped"]
    again = retry_quarantine(first["shards"], console)
    assert (again["decoded"], again["num_quarantined"]) == (1, 1)
    bad.write_bytes(picture.getvalue())
    mended = retry_quarantine(first["shards"], console)
    assert (mended["decoded"], mended["num_quarantined"]) == (1, 0)
    assert "train/1/bad.png" in samples_of(Path(first["shards"])) or (
        "validation/1/bad.png" in samples_of(Path(first["shards"]))
    )
    assert preprocess(config, console)["skipped"]


def _good_set(config: Config, console: Console) -> str:
    good = config.model_copy(update={"name": "good"})
    (Path(config.data.train) / "1" / "bad.png").rename(Path(config.output) / "aside.png")
    shards = preprocess(good, console)["shards"]
    (Path(config.output) / "aside.png").rename(Path(config.data.train) / "1" / "bad.png")
    return shards


def test_other_settings_are_refused_by_name_and_nothing_changes(
    config: Config, make_config: MakeConfig, console: Console, tmp_path: Path
) -> None:
    first = preprocess(config, console)
    other = make_config(
        tmp_path / "out", f"data.train={config.data.train}", "data.samples_per_shard=100",
        "data.image.resize=pad",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"data\.image\.resize was 'crop', is 'pad'.*--fresh"):
        preprocess(other, console)
    assert ShardSet.open(first["shards"]).digest == first["digest"]
    assert preprocess(other, console, fresh=True)["digest"] != first["digest"]


def test_a_damaged_shard_that_must_be_written_again_is_named_and_nothing_changes(
    config: Config, console: Console
) -> None:
    first = preprocess(config, console)
    shards = Path(config.shards_folder)
    shard_set = ShardSet.open(shards)
    reader = ShardReader(shard_set, "train")
    sample = reader.read(0)
    path_of(sample.source_uri, config).unlink()
    tar = shards / shard_set.shards("train")["name"][0].as_py()
    damaged = bytearray(tar.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    tar.write_bytes(damaged)
    with pytest.raises(ShardError, match=rf"{tar.name}: damaged, it hits sample"):
        preprocess(config, console)
    assert ShardSet.open(shards).digest == first["digest"]


def test_an_older_sets_ledger_makes_no_source_come_twice(config: Config, console: Console) -> None:
    preprocess(config, console)
    shards = Path(config.shards_folder)
    older = ledger_path(shards).read_bytes()
    Image.new("L", (28, 28), 5).save(Path(config.data.train) / "0" / "new.png")
    second = preprocess(config, console)
    ledger_path(shards).write_bytes(older)  # as a kill between set and ledger leaves it
    third = preprocess(config, console)
    assert (third["digest"], third["decoded"]) == (second["digest"], 0)
    assert len(samples_of(shards)) == 301


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt("a kill"), UserError("the network is down")], ids=str
)
def test_neither_a_kill_nor_a_passing_error_costs_a_finished_shard(
    config: Config, console: Console, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    def ends(*args: object, **options: object) -> None:
        raise end

    with monkeypatch.context() as patch:
        patch.setattr("shards.staging.publish", ends)
        with pytest.raises(type(end), match=str(end)):
            preprocess(config, console)
    staging = Path(config.shards_folder).with_name("shards.partial")
    made = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.tar")}
    assert len(made) == 4
    preprocess(config, console)
    shards = Path(config.shards_folder)
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")} == made
    assert verify(shards) == []


def test_what_a_command_killed_at_its_tidying_left_is_removed(
    config: Config, console: Console
) -> None:
    preprocess(config, console)
    shards = Path(config.shards_folder)
    shutil.copytree(shards, shards.with_name(".shards.replaced"))
    shards.with_name("shards.partial.made_by").write_text("left behind")
    shards.with_name(".shards.sources.parquet.1-0a.tmp").write_bytes(b"half a ledger")
    assert preprocess(config, console)["skipped"]
    assert {path.name for path in shards.parent.iterdir()} == {
        "shards", "shards.sources.parquet", "stages",
    }  # fmt: skip


def test_a_kill_while_an_older_set_is_replaced_costs_no_shard(
    config: Config, console: Console
) -> None:
    preprocess(config, console)
    shards = Path(config.shards_folder)
    for number in range(20):
        Image.new("L", (28, 28), number).save(Path(config.data.train) / "0" / f"new{number}.png")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "shards.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            preprocess(config, console)
    assert not shards.exists()
    staging = shards.with_name("shards.partial")
    made = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.tar")}
    preprocess(config, console)
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")} == made
    assert len(samples_of(shards)) == 320


def test_what_is_no_set_is_refused_before_any_work(
    config: Config, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Path(config.shards_folder)
    shards.mkdir(parents=True)
    (shards / "only-copy.png").write_bytes(b"...")
    monkeypatch.setattr("pipeline.preprocess.preprocess.build", None)
    for fresh in (False, True):
        with pytest.raises(ShardError, match="exists and is not a shard set"):
            preprocess(config, console, fresh=fresh)
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_one_command_at_a_time_makes_a_set(config: Config, console: Console) -> None:
    shards = Path(config.shards_folder)
    lock = exclusive_lock(shards.with_name("shards.lock"))
    with lock, pytest.raises(ShardError, match=r"shards\.lock: another process is at work"):
        preprocess(config, console)
    assert not preprocess(config, console)["skipped"]


def test_what_only_the_listing_refuses_is_told_of_when_it_comes_and_when_it_goes(
    config: Config, copied_digits: Path, console: Console
) -> None:
    preprocess(config, console)
    stray = copied_digits / "train" / "README.md"
    stray.write_text("of the digits")
    assert preprocess(config, console)["num_quarantined"] == 1
    assert preprocess(config, console)["skipped"]
    stray.unlink()
    assert preprocess(config, console)["num_quarantined"] == 0


def test_rows_that_repeat_a_key_are_refused_once_whatever_comes_after(
    tmp_path: Path, console: Console
) -> None:
    rows = [{"id": f"k{n}", "words": f"text {n}", "kind": "ab"[n % 2]} for n in range(20)]
    listing = tmp_path / "rows.jsonl"

    def write(*more: dict[str, str]) -> None:
        listing.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *rows[:9], *more)))

    write()
    path = tmp_path / "texts.yaml"
    path.write_text(
        f"""
name: texts
output: {tmp_path / "out"}
data:
  train: {listing}
  text: {{max_length: 32}}
  columns: {{key: id, text: words}}
  target: {{kind: class, column: kind}}
model: {{adapter: {{kind: token_embedding, num_channels: 8}}}}
"""
    )
    config = load_config(str(path))
    assert preprocess(config, console)["num_quarantined"] == 9
    assert preprocess(config, console)["skipped"]
    write({"id": "new", "words": "one more", "kind": "a"})
    result = preprocess(config, console)
    assert (result["decoded"], result["num_quarantined"]) == (1, 9)
