"""Places and files with any characters in their names."""

import os
from pathlib import Path

import pytest
from shard_server import ShardServer
from source_trees import (
    every_suffix,
    listed,
    make_files,
    make_tar,
    make_tree,
    paths,
    refusal,
    uris,
    write_listing,
)

from pipeline.config.data import absolute
from pipeline.preprocess.sources import SourceFile, plan_files, read_part, read_plan, write_plan

NO_CLASS = {"kind": "none"}
NAMES = [
    "set [v2]", "exp #2", "a: b", "50%", "100%41", "x*y?", "[!a]", "été 日本", "-n", "a::b",
    "http:", "trailing ", " leading", "{a,b}", "{1..3}", "{", "~", "~no-such-user", "a=b&c=d",
    "q?token=x",
    "'\"",
    "new\nline", "back\\slash", "memory:", "file:", "simplecache::x",
]  # fmt: skip
every_name = pytest.mark.parametrize("name", NAMES)


def contents(source_table) -> set[bytes]:
    """What the listed files hold."""
    table = source_table.table.to_pylist()
    parts = [SourceFile.of(part) for row in table for part in row["parts"]]
    return {read_part(source_table.reaches["train"], part) for part in parts}


@every_name
def test_a_tar_lies_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    for number in range(2):
        make_tar(folder / f"{name}-{number}.tar", {f"{name}/1.png": b"one %d" % number})
    for pattern in (
        f"{folder}/{name}-0.tar", f"{folder}/{name}-{{0,1}}.tar", f"{folder}/{name}-{{0..1}}.tar",
        f"{folder}/*.tar", f"{folder}/*-[01].tar", f"{folder}/{name}-?.tar", f"file://{folder}/*.tar",
    ):  # fmt: skip
        if "{" in name and not pattern.endswith(("-0.tar", "/*.tar", "[01].tar")):
            continue  # braces of a name that is not there as it stands are a range's
        source_table = listed(pattern, target=NO_CLASS)
        assert contents(source_table) == {b"one %d" % n for n in range(len(uris(source_table)))}, (
            pattern
        )
        assert len(uris(source_table)) == (1 if pattern.endswith("-0.tar") else 2), pattern
    assert len(uris(listed(folder, target=NO_CLASS, layout="tars"))) == 2


@every_name
def test_tars_are_found_from_the_working_directory(tmp_path, monkeypatch, name):
    make_tar(tmp_path / name / "a-0.tar", {"1.png": b"one"})
    monkeypatch.chdir(tmp_path)
    for pattern in (f"./{name}/a-0.tar", f"./{name}/a-*.tar", f"./{name}/a-{{0..0}}.tar"):
        source_table = listed(pattern, target=NO_CLASS)
        monkeypatch.chdir("/")  # where workers are does not matter
        assert contents(source_table) == {b"one"}
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if "\n" not in name])
def test_class_folders_files_and_splits_have_any_name(tmp_path, name):
    for split in ("train", "test"):
        make_files(tmp_path / name / split, {f"{name} 1": 3, f"{name} 2": 3})
        make_tree(tmp_path / name / split, f"{name} 1/{name}")
    source_table = listed(tmp_path / name / "train", test=str(tmp_path / name / "test"))
    assert source_table.classes == (f"{name} 1", f"{name} 2")
    assert f"train/{name} 1/{name}" in uris(source_table)
    assert os.fsencode(f"{name} 1/{name}") in contents(source_table)
    plan = tmp_path / name / "p.parquet"
    assert write_plan(source_table, plan, 100) == 2
    assert len(read_plan(plan, 0)) == 7 and len(plan_files(plan)) == 1


@every_name
@every_suffix
def test_rows_name_files_of_any_name(tmp_path, suffix, name):
    if suffix == ".csv" and "\n" in name:
        pytest.skip("pyarrow writes such values without quotes")
    root = make_tree(tmp_path / name, f"{name}.png", f"{name}/{name}", "sub/1.png")
    files = [f"{name}.png", f"{name}/{name}", f"./{name}/../sub/1.png", f"{root}/sub/1.png"]
    if "://" in files[1]:
        files = files[:1]
    path = write_listing(root, suffix, {"file": files}, name=f"{name}-rows")
    source_table = listed(path, columns={"image": "file"}, target=NO_CLASS)
    assert set(paths(source_table).values()) == set(files)
    assert len(contents(source_table)) == len({Path(f).name for f in files})


@every_name
@every_suffix
def test_values_are_read_from_listings_of_any_name(tmp_path, suffix, name):
    path = write_listing(tmp_path / name, suffix, {"words": ["a", "b"]}, name=f"{name}-rows")
    source_table = listed(path, ("text",), columns={"text": "words"}, target=NO_CLASS)
    plan = tmp_path / "plans" / "p.parquet"
    write_plan(source_table, plan, 9)
    assert [row.inline["text"] for row in read_plan(plan, 0)] == [b"a", b"b"]


@pytest.mark.parametrize("name", [n for n in NAMES if "\n" not in n and "\\" not in n])
def test_a_web_server_has_files_of_any_name(tmp_path, name):
    escaped = name.replace("%41", "%2541")
    make_tree(tmp_path / "web", f"{name}.png", f"d/{name}/1.png")
    make_tar(tmp_path / "web" / "t" / f"{name}.tar", {"1.png": b"one"})
    if "?token" in name:
        return  # that is a query
    path = write_listing(
        tmp_path / "web", ".jsonl", {"file": [f"{escaped}.png", f"d/{escaped}/1.png"]}
    )
    with ShardServer(tmp_path / "web") as server:
        source_table = listed(
            f"{server.url}/{path.name}", columns={"image": "file"}, target=NO_CLASS
        )
        assert contents(source_table) == {f"{name}.png".encode(), f"d/{name}/1.png".encode()}


def test_a_range_that_is_none_and_a_name_that_is_missing_are_told(tmp_path):
    make_tar(tmp_path / "set [v2]" / "a-0.tar", {"1.png": b"one"})
    message = refusal(tmp_path / "set [v2]" / "a-{0..1}.tar", target=NO_CLASS)
    assert message.endswith(f"no such file: {tmp_path}/set [v2]/a-1.tar")
    assert "names no .tar file" in refusal(tmp_path / "set [v3]" / "a-*.tar", target=NO_CLASS)
    assert "no such file" in refusal(tmp_path / "set [v2]" / "b.tar", target=NO_CLASS)
    assert "is not a range" in refusal(tmp_path / "set [v2]" / "a-{x}.tar", target=NO_CLASS)


def test_paths_are_made_absolute_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        if name != "~":
            assert absolute(name) == f"{tmp_path}/{name}"
    assert absolute("~") == str(Path.home())
    assert absolute("http://host/a b") == "http://host/a b"
