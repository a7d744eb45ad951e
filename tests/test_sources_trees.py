"""Folders of several modalities, targets in files of their own, and what is never opened."""

import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_server import ShardServer
from source_trees import (
    classes_of,
    listed,
    make_files,
    make_tree,
    paths,
    refusal,
    refused,
    rows,
    uris,
    write_listing,
)

NO_CLASS = {"kind": "none"}


# --- files of one name ---


def test_files_of_one_name_are_one_sample(tmp_path):
    make_tree(tmp_path, "a/1.jpg", "a/1.WAV", "a/1.txt", "b/1.png", "b/1.flac", "b/1.txt")
    source_table = listed(tmp_path, ("image", "audio", "text"), target=NO_CLASS)
    assert set(uris(source_table)) == {"train/a/1", "train/b/1"}
    assert [list(row["parts"]) for row in rows(source_table)] == [["image", "audio", "text"]] * 2
    assert paths(source_table, "audio") == {"train/a/1": "a/1.WAV", "train/b/1": "b/1.flac"}
    assert source_table.table["target"].null_count == 2
    assert source_table.classes == ()


def test_classes_are_the_first_folders_of_grouped_files_too(tmp_path):
    make_tree(tmp_path, "cat/x/1.jpg", "cat/x/1.wav", "owl/1.jpg", "owl/1.wav", "stray.jpg")
    source_table = listed(tmp_path, ("image", "audio"))
    assert classes_of(source_table) == {"train/cat/x/1": "cat", "train/owl/1": "owl"}
    assert refused(source_table) == {"train/stray.jpg": "lies beside the class folders"}


def test_a_missing_modality_is_refused_unless_it_may_be_missing(tmp_path):
    make_tree(tmp_path, "1.jpg", "1.wav", "2.jpg", "3.wav", "4.docx", "sub/README")
    source_table = listed(tmp_path, ("image", "audio"), target=NO_CLASS)
    assert uris(source_table) == ["train/1"]
    assert refused(source_table) == {
        "train/2": "it has no audio",
        "train/3": "it has no image",
        "train/4": "none of its files is image or audio",
        "train/sub/README": "none of its files is image or audio",
    }
    lenient = listed(tmp_path, ("image", "audio"), target=NO_CLASS, allow_missing=["audio"])
    assert set(uris(lenient)) == {"train/1", "train/2"}
    assert refused(lenient)["train/3"] == "it has no image"


def test_a_film_brings_its_sound(tmp_path):
    make_tree(tmp_path, "1.mp4", "2.mp4", "2.wav", "3.wav")
    source_table = listed(tmp_path, ("audio", "video"), target=NO_CLASS)
    assert set(uris(source_table)) == {"train/1", "train/2"}
    assert refused(source_table) == {"train/3": "it has no video"}


def test_two_files_for_one_field_are_refused(tmp_path):
    make_tree(tmp_path, "1.jpg", "1.png", "1.wav", "2.jpg", "2.wav")
    source_table = listed(tmp_path, ("image", "audio"), target=NO_CLASS)
    assert uris(source_table) == ["train/2"]
    assert refused(source_table) == {"train/1": "two files of its name are image"}


def test_names_may_have_dots_and_say_their_field(tmp_path):
    make_tree(tmp_path, "v1.0.final.jpg", "v1.0.final.wav", "b.image.png", "b.audio.ogg")
    source_table = listed(tmp_path, ("image", "audio"), target=NO_CLASS)
    assert set(uris(source_table)) == {"train/v1.0.final", "train/b"}
    assert paths(source_table)["train/b"] == "b.image.png"


def test_every_file_is_a_sample_where_one_modality_is_all(tmp_path):
    make_tree(tmp_path, "a/1.jpg", "a/1.png", "notes", "b.weird")
    source_table = listed(tmp_path, ("audio",), target=NO_CLASS)
    assert set(uris(source_table)) == {
        "train/a/1.jpg",
        "train/a/1.png",
        "train/notes",
        "train/b.weird",
    }
    assert {field for row in rows(source_table) for field in row["parts"]} == {"audio"}


@pytest.mark.parametrize("kind", ["mask", "regression", "tokens"])
def test_a_target_may_lie_in_a_file_of_its_own(tmp_path, kind):
    ending, field = (".mask.png", "mask") if kind == "mask" else (".json", "target")
    make_tree(tmp_path, "a/1.jpg", f"a/1{ending}", "a/2.jpg", f"a/3{ending}")
    source_table = listed(tmp_path, target={"kind": kind})
    assert uris(source_table) == ["train/a/1"]
    assert paths(source_table, field) == {"train/a/1": f"a/1{ending}"}
    assert paths(source_table) == {"train/a/1": "a/1.jpg"}
    assert refused(source_table) == {
        "train/a/2": f"it has no {field}",
        "train/a/3": "none of its files is image",
    }


def test_label_files_need_their_classes_named(tmp_path):
    make_tree(tmp_path, "1.jpg", "1.json")
    message = refusal(tmp_path, target={"kind": "multi_label"})
    assert message.startswith(
        "data.target.classes is missing: labels that lie in files of their own"
    )
    source_table = listed(tmp_path, target={"kind": "multi_label", "classes": ["x", "y"]})
    assert source_table.classes == ("x", "y")


# --- what is never opened ---


def test_links_out_of_the_folder_and_special_files_are_refused(tmp_path):
    root = make_files(tmp_path / "train", {"cat": 2, "owl": 2})
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"x")
    links = {
        "out.png": outside, "up.png": "../../secret.png", "nothing.png": root / "cat" / "none",
        "self.png": root / "cat" / "self.png", "folder": root / "owl", "away": tmp_path,
        "device.png": "/dev/zero", "fine.png": root / "owl" / "000.png",
    }  # fmt: skip
    for name, target in links.items():
        (root / "cat" / name).symlink_to(target)
    os.mkfifo(root / "cat" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(root / "cat")  # a socket's path must be short
        server.bind("socket.png")
        os.chdir(before)
        source_table = listed(root)
    assert refused(source_table) == {
        "train/cat/out.png": "a link that leads out of the folder",
        "train/cat/up.png": "a link that leads out of the folder",
        "train/cat/device.png": "a link that leads out of the folder",
        "train/cat/away": "a link that leads out of the folder",
        "train/cat/nothing.png": "a link to nothing",
        "train/cat/self.png": "a link to itself",
        "train/cat/folder": "a link to a folder; its files are listed in their own place",
        "train/cat/pipe.png": "a pipe, not a file",
        "train/cat/socket.png": "a socket, not a file",
    }
    assert source_table.counts() == {"train": 5}
    assert "train/cat/fine.png" in uris(source_table)


def test_the_root_itself_may_be_a_link(tmp_path):
    make_files(tmp_path / "real", {"cat": 1, "owl": 1})
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "cat" / "twin.png").symlink_to("000.png")
    assert len(uris(listed(tmp_path / "link"))) == 3


@pytest.mark.parametrize("modalities", [("image",), ("image", "text")])
def test_any_name_is_a_name(tmp_path, modalities):
    names = [
        b"new\nline.png",
        b"\xff\xfe.png",
        b"a..b.png",
        b"%2e%2e%2f.png",
        b" .png",
        b"\\..\\x.png",
    ]
    folder = os.fsencode(tmp_path)
    for name in names:
        for each in (name, name[:-4] + b".txt"):
            Path(os.fsdecode(folder + b"/" + each)).write_bytes(b"x")
    source_table = listed(tmp_path, modalities, target=NO_CLASS)
    wanted = {b"train/" + (name[:-4] if "text" in modalities else name) for name in names}
    assert wanted <= set(source_table.table["uri"].to_pylist())
    assert source_table.table.num_rows == (12 if modalities == ("image",) else 6)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads every folder")
    make_files(tmp_path, {"cat": 1, "owl": 1, "shut": 1})
    (tmp_path / "shut").chmod(0)
    assert "Permission denied" in refused(listed(tmp_path))["train/shut"]


# --- later runs ---


def known_of(*listings) -> pa.Table:
    return pa.concat_tables(
        [source_table.table.select(["uri", "split"]) for source_table in listings]
    )


def test_known_samples_keep_their_split_and_new_ones_keep_the_share(tmp_path):
    make_files(tmp_path, {"cat": 40, "owl": 20})
    first = listed(tmp_path, validation=0.25)
    make_files(tmp_path, {"cat": 40, "owl": 1}, start=100)
    second = listed(tmp_path, validation=0.25, known=known_of(first))
    assert set(uris(first)) <= set(uris(second))
    held = list(classes_of(second, "validation").values())
    assert (held.count("cat"), held.count("owl")) == (20, 5)
    assert set(uris(listed(tmp_path, validation=0.25))) != set(uris(second))
    third = listed(tmp_path, validation=0.25, known=known_of(second))
    assert uris(third) == uris(second)
    assert third.state_digest == second.state_digest


def test_known_samples_that_are_gone_leave_their_place_to_new_ones(tmp_path):
    make_files(tmp_path, {"cat": 8, "owl": 8})
    first = listed(tmp_path, validation=0.25)
    for uri in uris(first, "validation"):
        (tmp_path / uri.removeprefix("validation/")).unlink()
    make_files(tmp_path, {"cat": 2, "owl": 2}, start=50)
    second = listed(tmp_path, validation=0.25, known=known_of(first))
    assert set(uris(first, "train")) <= set(uris(second, "train"))
    names = {f"validation/{name}/{n:03d}.png" for name in ("cat", "owl") for n in (50, 51)}
    assert set(uris(second, "validation")) == names


def test_known_classes_keep_their_numbers(tmp_path):
    make_files(tmp_path, {"cat": 2, "owl": 2})
    first = listed(tmp_path)
    make_files(tmp_path, {"ant": 2, "zebu": 2})
    second = listed(tmp_path, known_classes=first.classes)
    assert second.classes == ("cat", "owl", "ant", "zebu")
    assert {row["uri"]: row["target"] for row in rows(second)}["train/owl/000.png"] == 1


# --- classes named in the configuration ---


def test_classes_may_be_named_in_their_order(tmp_path):
    make_files(tmp_path, {"cat": 1, "owl": 1})
    source_table = listed(tmp_path, target={"classes": ["owl", "emu", "cat"]})
    assert source_table.classes == ("owl", "emu", "cat")
    assert classes_of(source_table)["train/cat/000.png"] == "cat"
    message = refusal(tmp_path, target={"classes": ["owl", "emu"]})
    assert message == "data.target.classes: lacks 'cat', which train has"


# --- servers ---


@pytest.mark.parametrize("source", ["photos", "rows.csv", "a.tar"])
def test_a_server_that_fails_is_not_taken_for_an_empty_one(tmp_path, source):
    columns = {"columns": {"image": "file"}} if source == "rows.csv" else {}
    with ShardServer(tmp_path) as server:
        url = f"{server.url}/{source}"
        message = refusal(url, target=NO_CLASS, **columns)
        assert message.startswith(f"data.train={url}: no such f")
        server.fails = lambda path, times: 403
        message = refusal(url, target=NO_CLASS, **columns)
        assert message.startswith(f"data.train={url}: cannot be read: ClientResponseError: 403")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_server_that_fails_once_is_asked_again(tmp_path, suffix, failing):
    files = [f"{n}.jpg" for n in range(9)]
    path = write_listing(tmp_path, suffix, {"file": files, "kind": ["a", "b", "a"] * 3})
    with ShardServer(tmp_path) as server:
        server.fails = lambda path, times: 503 if times == failing else None
        url, target = f"{server.url}/{path.name}", {"column": "kind"}
        source_table = listed(url, target=target, columns={"image": "file"})
    assert source_table.table.num_rows == 9 and source_table.classes == ("a", "b")


def test_json_lines_are_read_from_a_server(tmp_path):
    rows = [{"file": f"{n}.jpg", "kind": "ab"[n % 2]} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ShardServer(tmp_path) as server:
        source_table = listed(
            f"{server.url}/rows.jsonl", columns={"image": "file"}, target={"column": "kind"}
        )
    assert classes_of(source_table) == {"train/0.jpg": "a", "train/1.jpg": "b", "train/2.jpg": "a"}


def test_a_row_with_half_a_surrogate_or_an_empty_name_is_refused_alone(tmp_path):
    rows = [{"t": "one", "k": ["a"]}, {"t": "\ud800", "k": ["a"]}, {"t": "two", "k": ["a", None]}]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = {"kind": "multi_label", "column": "k"}
    source_table = listed(lines, ("text",), columns={"text": "t"}, target=target)
    assert (source_table.table.num_rows, source_table.refused.num_rows) == (1, 2)
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"t": ["one", "two"], "k": [["a"], ["a", None]]}), table)
    source_table = listed(table, ("text",), columns={"text": "t"}, target=target)
    assert (source_table.table.num_rows, source_table.refused.num_rows) == (1, 1)
