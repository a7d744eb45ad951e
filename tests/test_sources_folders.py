"""Which raw files there are, and the split, class and shard of each."""

import os
import shutil
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from source_trees import classes_of, listed, make_files, paths, refusal, refused, rows, uris

from pipeline.preprocess.sources import SourceRow, part_file, plan_files, read_plan, write_plan

# --- splits ---


def test_every_file_has_its_class_path_and_size(tmp_path):
    make_files(tmp_path, {"owl": 2, "cat": 1})
    (tmp_path / "cat" / "indoors").mkdir()
    (tmp_path / "cat" / "indoors" / "a b.png").write_bytes(b"12345678")
    source_table = listed(tmp_path)
    assert source_table.classes == ("cat", "owl")
    assert classes_of(source_table) == {
        "train/owl/000.png": "owl",
        "train/owl/001.png": "owl",
        "train/cat/000.png": "cat",
        "train/cat/indoors/a b.png": "cat",
    }
    sizes = {row["uri"]: row["parts"]["image"]["size"] for row in rows(source_table)}
    assert sizes["train/owl/001.png"] == 2 and sizes["train/cat/indoors/a b.png"] == 8
    assert paths(source_table)["train/cat/indoors/a b.png"] == "cat/indoors/a b.png"
    assert source_table.roots == {"train": str(tmp_path)}
    assert source_table.counts() == {"train": 4}


def test_splits_have_folders_of_their_own(tmp_path):
    train = make_files(tmp_path / "train", {"cat": 3, "owl": 3})
    validation = make_files(tmp_path / "val", {"owl": 2})
    test = make_files(tmp_path / "test", {"cat": 1, "owl": 1})
    source_table = listed(train, validation=str(validation), test=str(test))
    assert source_table.counts() == {"train": 6, "validation": 2, "test": 2}
    assert set(uris(source_table, "validation")) == {
        "validation/owl/000.png",
        "validation/owl/001.png",
    }
    assert [row["split"] for row in rows(source_table)] == ["train"] * 6 + ["validation"] * 2 + [
        "test"
    ] * 2
    assert source_table.roots["test"] == str(test)


def test_a_share_of_each_class_is_held_out(tmp_path):
    make_files(tmp_path, {"cat": 40, "dog": 10, "owl": 2})
    source_table = listed(tmp_path, validation=0.2)
    assert Counter(classes_of(source_table, "validation").values()) == {
        "cat": 8,
        "dog": 2,
        "owl": 1,
    }
    assert source_table.counts() == {"train": 41, "validation": 11}
    assert len(set(paths(source_table).values())) == 52
    assert source_table.roots["validation"] == str(tmp_path)


def test_a_class_keeps_a_file_to_train_on(tmp_path):
    make_files(tmp_path, {"cat": 2, "owl": 3})
    source_table = listed(tmp_path, validation=0.99)
    assert source_table.counts() == {"train": 2, "validation": 3}


def test_what_is_held_out_stays_where_it_is(tmp_path):
    make_files(tmp_path, {"cat": 40, "owl": 40})
    before = uris(listed(tmp_path, validation=0.25), "validation")
    assert before == uris(listed(tmp_path, validation=0.25), "validation")
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)
    assert before == uris(listed(copy, validation=0.25), "validation")
    assert before != uris(listed(tmp_path, validation=0.25, seed=1), "validation")


def test_a_new_file_moves_at_most_one_other_and_none_of_another_class(tmp_path):
    make_files(tmp_path, {"cat": 40, "owl": 40})
    before = set(uris(listed(tmp_path, validation=0.25), "validation"))
    for number in range(40, 48):
        make_files(tmp_path, {"cat": 1}, start=number)
        after = set(uris(listed(tmp_path, validation=0.25), "validation"))
        new = f"validation/cat/{number:03d}.png"
        assert len((before ^ after) - {new}) <= 1
        assert all(uri.startswith("validation/cat/") for uri in before ^ after)
        before = after


def test_known_files_stay_in_their_split_and_new_ones_fill_the_share(tmp_path):
    make_files(tmp_path, {"cat": 40, "owl": 8})
    before = listed(tmp_path, validation=0.25)
    # As a set has them that was made with another seed.
    known = before.table.select(["uri", "split"])
    make_files(tmp_path, {"cat": 20}, start=40)
    after = listed(tmp_path, known=known, validation=0.25, seed=1)
    assert set(uris(before, "validation")) <= set(uris(after, "validation"))
    assert set(uris(before, "train")) <= set(uris(after, "train"))
    assert Counter(classes_of(after, "validation").values()) == {"cat": 15, "owl": 2}
    # A smaller share takes nothing back, and holds out no more.
    fewer = listed(tmp_path, known=known, validation=0.1, seed=1)
    assert Counter(classes_of(fewer, "validation").values()) == {"cat": 10, "owl": 2}


# --- order ---


def test_the_order_mixes_the_classes(tmp_path):
    make_files(tmp_path, {"cat": 40, "dog": 40, "owl": 40})
    names = list(classes_of(listed(tmp_path)).values())
    for start in range(0, 120, 20):
        assert set(names[start : start + 20]) == {"cat", "dog", "owl"}


def test_the_order_is_the_seeds_alone(tmp_path):
    make_files(tmp_path, {"cat": 20, "owl": 20})
    order = uris(listed(tmp_path))
    assert order == uris(listed(tmp_path))
    other = uris(listed(tmp_path, seed=1))
    assert order != other and sorted(order) == sorted(other)


def test_a_new_file_leaves_the_others_order(tmp_path):
    make_files(tmp_path, {"cat": 20, "owl": 20})
    before = uris(listed(tmp_path))
    make_files(tmp_path, {"cat": 1}, start=20)
    after = uris(listed(tmp_path))
    assert [uri for uri in after if uri != "train/cat/020.png"] == before


# --- what is passed over ---


def test_hidden_and_system_files_are_passed_over(tmp_path):
    make_files(tmp_path, {"cat": 1, "owl": 1})
    make_files(tmp_path / ".git", {"objects": 2})
    make_files(tmp_path / "cat", {".thumbnails": 1})
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "owl/desktop.ini", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    source_table = listed(tmp_path)
    assert set(uris(source_table)) == {"train/cat/000.png", "train/owl/000.png"}
    assert refused(source_table) == {}


def test_a_hidden_folder_may_hold_the_root(tmp_path):
    source_table = listed(make_files(tmp_path / ".cache" / "media", {"cat": 1, "owl": 1}))
    assert source_table.counts() == {"train": 2}


def test_files_beside_the_class_folders_are_kept_aside(tmp_path):
    train = make_files(tmp_path / "train", {"cat": 2, "owl": 2})
    test = make_files(tmp_path / "test", {"cat": 1})
    (train / "README.md").write_text("about")
    (test / "labels.csv").write_text("a,b")
    source_table = listed(train, test=str(test))
    loose = "lies beside the class folders"
    assert refused(source_table) == {"train/README.md": loose, "test/labels.csv": loose}
    assert source_table.counts() == {"train": 4, "test": 1}
    assert source_table.classes == ("cat", "owl")


# --- what changed ---


def test_digests_tell_copies_from_changes(tmp_path):
    first = make_files(tmp_path / "a", {"cat": 2, "owl": 2})
    before = listed(first)
    second = tmp_path / "b"
    shutil.copytree(first, second)
    os.utime(second / "cat" / "000.png", (1, 1))
    copied = listed(second)
    assert copied.content_digest == before.content_digest
    assert copied.state_digest != before.state_digest
    (second / "loose.txt").write_text("x")
    assert listed(second).content_digest != before.content_digest
    (first / "cat" / "000.png").write_bytes(b"longer")
    assert listed(first).content_digest != before.content_digest


def test_a_root_that_a_network_does_not_list_is_refused_in_one_line(monkeypatch):
    fsspec.filesystem("memory").pipe("/shut-test/cat/1.png", b"123")

    class ServerGoneError(Exception):
        """As networks' libraries raise it: no OSError."""

    def broken(self, path, *args, **options):
        raise ServerGoneError("the server\nis gone")

    monkeypatch.setattr(MemoryFileSystem, "ls", broken)
    assert refusal("memory://shut-test") == (
        "data.train=memory://shut-test: cannot be read: ServerGoneError: the server is gone"
    )


def test_a_root_may_be_any_url():
    memory = fsspec.filesystem("memory")
    for path in ("cat/1.png", "owl/2.png", "owl/.hidden", "note.txt"):
        memory.pipe(f"/listing-test/{path}", b"123")
    source_table = listed("memory://listing-test")
    assert set(paths(source_table).values()) == {"cat/1.png", "owl/2.png"}
    assert [row["parts"]["image"]["size"] for row in rows(source_table)] == [3, 3]
    assert refused(source_table) == {"train/note.txt": "lies beside the class folders"}


# --- refusals ---


def test_a_missing_folder_is_refused(tmp_path):
    make_files(tmp_path / "train", {"cat": 2, "owl": 2})
    missing = str(tmp_path / "missing")
    assert refusal(missing) == f"data.train={missing}: no such folder"
    for split in ("validation", "test"):
        message = refusal(tmp_path / "train", **{split: missing})
        assert message == f"data.{split}={missing}: no such folder"


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"x")
    assert refusal(path).startswith(f"data.train={path}: not a folder; give one with a folder for")


@pytest.mark.parametrize("inside", [None, "cat", ".hidden"])
def test_an_empty_folder_is_refused(tmp_path, inside):
    if inside:
        (tmp_path / inside).mkdir()
    assert refusal(tmp_path).startswith(f"data.train={tmp_path}: is empty; put each class's files")


def test_files_without_class_folders_are_refused(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    assert refusal(tmp_path).startswith(
        f"data.train={tmp_path}: holds 2 files but no class folders; put each class's files into"
    )


def test_one_class_is_refused(tmp_path):
    make_files(tmp_path, {"cat": 5})
    assert "one class only ('cat'); a classifier needs at least two" in refusal(tmp_path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_lacks_is_refused(tmp_path, split):
    train = make_files(tmp_path / "train", {"cat": 2, "owl": 2})
    other = make_files(tmp_path / "other", {"cat": 1, "bat": 1, "ant": 1})
    message = refusal(train, **{split: str(other)})
    assert message == f"data.{split}={other}: class folders 'ant', 'bat' are not in data.train"


def test_a_class_of_one_file_cannot_be_split(tmp_path):
    make_files(tmp_path, {"cat": 5, "owl": 1})
    message = refusal(tmp_path, validation=0.2)
    assert message.startswith(
        "data.validation=0.2: class 'owl' has only one file, so none would be left"
    )
    assert listed(tmp_path).counts() == {"train": 6}


# --- the plan ---


def plan_rows(path: Path, shards: int) -> list[list[SourceRow]]:
    return [read_plan(path, shard) for shard in range(shards)]


def test_a_plan_cuts_each_split_into_shards(tmp_path):
    train = make_files(tmp_path / "train", {"cat": 4, "owl": 3})
    test = make_files(tmp_path / "test", {"owl": 2})
    source_table = listed(train, test=str(test))
    plan = tmp_path / "made" / "plan.parquet"
    assert write_plan(source_table, plan, samples_per_shard=3) == 4
    shards = plan_rows(plan, 4)
    assert [[row.split for row in samples] for samples in shards] == [
        ["train"] * 3,
        ["train"] * 3,
        ["train"],
        ["test"] * 2,
    ]
    assert [(row.split, row.uri, row.target) for samples in shards for row in samples] == [
        (row["split"], row["uri"], row["target"]) for row in rows(source_table)
    ]
    first = shards[0][0]
    assert f"train/{first.parts[0].path}" == first.uri
    assert (first.parts[0].field, first.parts[0].offset) == ("image", None)
    assert (first.row, first.values, first.inline) == (None, {}, {})
    (file,) = plan_files(plan)
    assert pq.ParquetFile(file).num_row_groups == 4


def test_a_plan_of_many_shards_lies_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess.sources.plan.SHARDS_IN_A_FILE", 2)
    make_files(tmp_path / "train", {"cat": 4, "owl": 3})
    plan = tmp_path / "plan.parquet"
    assert write_plan(listed(tmp_path / "train"), plan, samples_per_shard=2) == 4
    assert [pq.ParquetFile(file).num_row_groups for file in plan_files(plan)] == [2, 2]
    assert [len(samples) for samples in plan_rows(plan, 4)] == [2, 2, 2, 1]


def test_names_that_are_not_utf_8_survive(tmp_path):
    make_files(tmp_path / "raw", {"cat": 1, "dog": 1})
    strange = os.fsencode(tmp_path / "raw") + b"/cat/caf\xe9"
    Path(os.fsdecode(strange)).mkdir()
    Path(os.fsdecode(strange + b"/\xff\n.png")).write_bytes(b"1234")
    source_table = listed(tmp_path / "raw")
    assert len(source_table.content_digest) == 64
    plan = tmp_path / "plan.parquet"
    assert write_plan(source_table, plan, samples_per_shard=10) == 1
    by_path = {os.fsencode(row.parts[0].path): row for row in read_plan(plan, 0)}
    assert set(by_path) == {b"cat/000.png", b"dog/000.png", b"cat/caf\xe9/\xff\n.png"}
    row = by_path[b"cat/caf\xe9/\xff\n.png"]
    assert (row.target, row.parts[0].size) == (0, 4)
    assert os.fsencode(row.uri) == b"train/cat/caf\xe9/\xff\n.png"
    assert Path(part_file(source_table.reaches["train"], row.parts[0])[1]).read_bytes() == b"1234"


def test_a_class_whose_name_is_not_utf_8_is_refused_before_any_work(tmp_path):
    make_files(tmp_path, {"cat": 1, os.fsdecode(b"caf\xe9"): 1})
    assert refusal(tmp_path) == (
        f"data.train={tmp_path}: the class 'caf\\udce9' is not UTF-8; rename it, or save the "
        "listing as UTF-8"
    )
