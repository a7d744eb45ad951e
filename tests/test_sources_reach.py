"""What rows of a listing may name: what lies under the listing's own root, and what is allowed."""

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_server import ShardServer
from source_trees import (
    data_config,
    every_suffix,
    listed,
    make_tree,
    refused,
    uris,
    write_listing,
)

from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.preprocess.sources import SourceFile, list_sources, read_part, read_plan, write_plan
from pipeline.preprocess.sources.local_files import OUTSIDE
from pipeline.preprocess.sources.reach import Reach
from shards.retries import Retry

ROWS = {"columns": {"image": "file"}, "target": {"kind": "none"}}
GOOD = "good.png"


def part(path: str) -> SourceFile:
    return SourceFile("image", path, None, None, -1, "")


def reason_of(reach: Reach, path: str) -> str:
    with pytest.raises(MediaError) as caught:
        read_part(reach, part(path))
    return str(caught.value)


# --- this machine's files ---


@every_suffix
def test_a_row_cannot_name_a_file_outside_the_listings_folder(tmp_path, suffix):
    secret = make_tree(tmp_path, "private/key.png", "a-b/x.png") / "private/key.png"
    root = make_tree(tmp_path / "a", GOOD, "in/side.png")
    (root / "link.png").symlink_to(secret)
    (root / "out").symlink_to(tmp_path / "private")
    (root / "own.png").symlink_to(root / GOOD)
    outside = [
        str(secret), f"file://{secret}", "../private/key.png", "in/../../private/key.png",
        "link.png", "out/key.png", f"local://{secret}", f"FILE://{secret}", "../a-b/x.png",
        "/proc/self/environ", f"{root}/../private/key.png", "/no/such/file", "../no-such",
    ]  # fmt: skip
    inside = [GOOD, "in/../own.png", f"{root}/in/side.png", f"file://{root}/./{GOOD}"]
    values = {"file": [*inside, *outside], "part": ["train"] * len([*inside, *outside])}
    path = write_listing(root, suffix, values)
    source_table = listed(path, **ROWS)
    assert set(uris(source_table)) == {f"train/{name}" for name in inside}
    assert refused(source_table) == {f"train/{name}": f"image: {OUTSIDE}" for name in outside}
    for name in outside[:-2]:  # whoever asks
        assert reason_of(source_table.reaches["train"], name) == OUTSIDE


def test_more_is_read_by_prefixes_of_whole_names(tmp_path):
    root = make_tree(tmp_path / "a", GOOD)
    make_tree(tmp_path, "b/1.png", "b2/2.png", "b/c/3.png")
    (root / "link.png").symlink_to(tmp_path / "b/1.png")
    names = [
        GOOD,
        "../b/1.png",
        "link.png",
        str(tmp_path / "b2/2.png"),
        f"file://{tmp_path}/b/c/3.png",
    ]
    path = write_listing(root, ".csv", {"file": names})
    source_table = listed(path, **ROWS, allow=[f"{tmp_path}/x/../b"])
    assert refused(source_table) == {f"train/{names[3]}": f"image: {OUTSIDE}"}
    assert [read_part(source_table.reaches["train"], part(name)) for name in names[1:3]] == [
        b"b/1.png"
    ] * 2
    assert len(uris(listed(path, **ROWS, allow=[f"file://{tmp_path}"]))) == 5
    assert len(uris(listed(path, **ROWS, allow=["/"]))) == 5


def test_a_chain_is_no_prefix(tmp_path):
    with pytest.raises(UserError, match="no chain of several"):
        data_config(tmp_path, allow=["simplecache::http://host/a"])


def test_what_a_name_leads_to_may_change_after_it_was_listed(tmp_path):
    secret = make_tree(tmp_path, "private.png") / "private.png"
    root = make_tree(tmp_path / "a", *(f"{n}.png" for n in range(4)))
    source_table = listed(
        write_listing(root, ".csv", {"file": [f"{n}.png" for n in range(4)]}), **ROWS
    )
    for name in ("0.png", "1.png", "2.png", "3.png"):
        (root / name).unlink()
    (root / "0.png").symlink_to(secret)
    os.mkfifo(root / "1.png")
    (root / "2.png").mkdir()
    (root / "3.png").symlink_to("/dev/zero")
    reach = source_table.reaches["train"]
    assert reason_of(reach, "0.png") == OUTSIDE
    assert reason_of(reach, "1.png") == "a pipe, not a file"
    assert reason_of(reach, "2.png") == "a folder, not a file"
    assert reason_of(reach, "3.png") in (OUTSIDE, "a device, not a file")
    assert reason_of(Reach("/", confined=False), "/dev/zero") == "a device, not a file"


def test_files_of_a_folder_are_read_from_it_alone(tmp_path):
    secret = make_tree(tmp_path, "private.png") / "private.png"
    root = make_tree(tmp_path / "a", "x/1.png", "y/2.png")
    reach = listed(root).reaches["train"]
    (root / "x/1.png").unlink()
    (root / "x/1.png").symlink_to(secret)
    assert reason_of(reach, "x/1.png") == OUTSIDE
    assert read_part(reach, part("y/2.png")) == b"y/2.png"


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_a_listing_or_tar_that_is_no_file_is_refused_at_once(tmp_path, kind):
    for name in ("rows.csv", "a.tar"):
        path = tmp_path / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(UserError):
            listed(path, **ROWS)


# --- sizes ---


def test_a_file_is_bounded_before_it_is_read_and_while_it_grows(tmp_path, monkeypatch):
    root = make_tree(tmp_path, GOOD)
    with (root / "hole.png").open("wb") as file:
        file.truncate(1 << 40)
    reach = Reach(str(root), max_file_bytes=100)
    message = "data.max_file_bytes"
    assert reason_of(reach, "hole.png") == f"{1 << 40} bytes, more than 100 ({message})"
    (root / "grows.png").write_bytes(b"x" * 1000)
    fstat = os.fstat

    def before_it_grew(descriptor):
        found = list(fstat(descriptor))
        found[6] = 10
        return os.stat_result(found)

    monkeypatch.setattr("pipeline.preprocess.sources.local_files.os.fstat", before_it_grew)
    assert reason_of(reach, "grows.png") == f"101 bytes, more than 100 ({message})"
    config = data_config(root, max_file_bytes=7, target={"kind": "none"})
    assert list_sources(config).reaches["train"].max_file_bytes == 7


# --- addresses ---


OUTSIDE_THE_URL = [
    "../other/1.png", "%2e%2e/other/1.png", "%252e%252e/other/1.png", "a/..%2f..%2fother/1.png",
    "..\\other\\1.png", "/etc/passwd", "file:///etc/passwd", "//evil/1.png", "HOST/other/1.png",
    "HOST/data2/1.png", "HOST/data/../other/1.png", "HOST/data/..;/other/1.png",
    "http://127.0.0.1:1/data/1.png", "http://localhost/data/1.png", "https://127.0.0.1/data/1.png",
    "http://user:pass@127.0.0.1:1/data/1.png", "http://127.0.0.1:1@evil/data/1.png",
    "http://evil\\@127.0.0.1:1/data/1.png", "memory://x/1.png", "no-such-protocol://x/1.png",
    "simplecache::HOST/data/1.png", "zip://1.png::HOST/data/1.zip", "http:///data/1.png",
    "filecache::file:///etc/passwd", "http://[::1]/data/1.png", "http://2130706433/data/1.png",
]  # fmt: skip


@pytest.mark.parametrize("given", OUTSIDE_THE_URL)
def test_a_row_of_a_listing_at_a_url_cannot_name_what_lies_elsewhere(given, tmp_path):
    make_tree(tmp_path, "other/1.png", "data2/1.png", "data/1.zip", f"data/{GOOD}")
    with ShardServer(tmp_path) as server:
        name = given.replace("HOST", server.url)
        write_listing(tmp_path / "data", ".csv", {"file": [GOOD, name]})
        source_table = listed(f"{server.url}/data/rows.csv", **ROWS)
        assert uris(source_table) == [f"train/{GOOD}"]
        assert source_table.refused.num_rows == 1
        reason_of(source_table.reaches["train"], name)
        assert set(server.requests) == {"data/rows.csv"}


@every_suffix
def test_a_local_listing_names_addresses_only_where_they_are_allowed(tmp_path, suffix):
    make_tree(tmp_path / "web", "data/1.png", "data2/1.png", "data/a b#50%?.png")
    with ShardServer(tmp_path / "web") as server:
        names = [f"{server.url}/data/1.png", f"{server.url}/data2/1.png"]
        path = write_listing(tmp_path, suffix, {"file": names})
        with pytest.raises(UserError, match=r"data\.allow names what else"):
            listed(path, **ROWS)
        source_table = listed(path, **ROWS, allow=[f"{server.url}/data/"])
        assert uris(source_table) == [f"train/{names[0]}"]
        assert server.requests == {}
        assert read_part(source_table.reaches["train"], part(names[0])) == b"data/1.png"


class _Sender(BaseHTTPRequestHandler):
    """Sends on to another place, or sends a body without an end."""

    asked: list[str]
    to: str

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/data/on"):
            self.send_response(302)
            self.send_header("Location", self.to + self.path.removeprefix("/data/on"))
            self.end_headers()
            return
        asked = self.headers.get("Range", "bytes=0-99").removeprefix("bytes=")
        ranged = self.path.startswith("/range") and "Range" in self.headers
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {asked}/1000")
        elif self.path.startswith("/range"):
            self.send_header("Content-Length", "1000")
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.path.startswith("/range") and not ranged:
            self.wfile.write(b"x" * 1000)
            return
        try:
            while True:
                self.wfile.write(b"x" * 65536)
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def sender():
    handler = type("Handler", (_Sender,), {"asked": [], "to": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_cannot_send_a_row_elsewhere(tmp_path, sender):
    handler, url = sender
    make_tree(tmp_path, "private.png", "open/1.png")
    with ShardServer(tmp_path) as other:
        handler.to = other.url
        reach = Reach(f"{url}/data", (f"{other.url}/open",))
        message = "the server sends on to another place, which data.allow does not name"
        assert reason_of(reach, "on/private.png") == message
        assert other.requests == {}
        assert read_part(reach, part("on/open/1.png")) == b"open/1.png"
        handler.to = "file:///etc/passwd"
        reason_of(reach, "on")
    assert set(handler.asked) == {"/data/on/private.png", "/data/on/open/1.png", "/data/on"}


def test_a_body_without_an_end_is_read_no_further_than_the_bound(sender):
    _, url = sender
    reach = Reach(f"{url}/data", max_file_bytes=1_000_000)
    size, _, message = reason_of(reach, "endless.png").partition(" ")
    assert message == "bytes, more than 1000000 (data.max_file_bytes)" and int(size) < 2_000_000
    member = SourceFile("image", "a.tar", 512, 100, 100, "")
    with pytest.raises(MediaError, match="more than the 100 bytes of a tar"):
        read_part(Reach(url, confined=False), member)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl", "a.tar"])
def test_a_range_without_an_end_is_refused(sender, monkeypatch, name):
    monkeypatch.setattr("pipeline.preprocess.sources.web_answers.MAX_ANSWER_BYTES", 4 << 20)
    monkeypatch.setattr("pipeline.preprocess.sources.parts.RETRY", Retry(attempts=1))
    _, url = sender
    with pytest.raises(UserError, match="the server sends more than 4194304 bytes at once"):
        listed(f"{url}/range/{name}", **ROWS)


def test_a_long_read_is_several_requests(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess.sources.parts.REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr("pipeline.preprocess.sources.web_answers.MAX_ANSWER_BYTES", 4 << 20)
    words = [f"{number:08d}" * (1 << 17) for number in range(9)]
    table = pa.table({"words": words, "kind": ["x", "y", "z"] * 3})
    pq.write_table(table, tmp_path / "rows.parquet", compression="none", use_dictionary=False)
    with ShardServer(tmp_path) as server:
        source_table = listed(
            f"{server.url}/rows.parquet", ("text",), columns={"text": "words"},
            target={"column": "kind"},
        )  # fmt: skip
        write_plan(source_table, tmp_path / "plan.parquet", 9)
        found = read_plan(tmp_path / "plan.parquet", 0, None, source_table.value_addresses)
    assert [row.inline["text"].decode() for row in found] == words


def test_a_declared_length_is_enough_to_refuse(tmp_path):
    make_tree(tmp_path, GOOD)
    with ShardServer(tmp_path) as server:
        reach = Reach(server.url, max_file_bytes=7)
        assert reason_of(reach, GOOD) == f"{len(GOOD)} bytes, more than 7 (data.max_file_bytes)"
