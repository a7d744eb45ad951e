"""Whatever a set says, nothing but the set is read, written or removed, and one line tells why."""

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hostile_sets import Change, put, reseal, seal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_server import ShardServer
from shard_sets import SPEC, files_of, make_set, upload

from pipeline.preprocess.inspect_shards import inspect_shards
from pipeline.preprocess.ledger import Ledger, ledger_path
from shards import (
    RemoteReading,
    ShardError,
    ShardReader,
    ShardSet,
    read_position_table,
    read_quarantine,
    rewrite_shard,
    verify,
)
from shards.digests import canonical_json, sha256_hex
from shards.npy import decode_npy
from shards.parquet import encode_parquet
from shards.quarantine import read_quarantine_table
from shards.rewrite import link_shard
from shards.set_files import open_file
from shards.writer import read_committed

HEX = "0" * 64
MOST = (1 << 62) - 1
OUTSIDE = "../../outside/secret"
BAD_NAMES = [
    "/etc/passwd",
    "../outside",
    "..",
    ".",
    "",
    "a/b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "CON:",
    "a..b",
]
BAD_DIGESTS = [OUTSIDE, "/etc/passwd", "", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", "é" * 64]

MANIFEST: list[Change] = [
    *(put(field, bad)
      for field in ("config_digest", "shards_sha256", "quarantine_sha256")
      for bad in [*BAD_DIGESTS, 5, None]),
    put("shards_sha256", HEX), put("config_digest", HEX),
    *(put("counts", bad) for bad in [
        {"train": -9, "val": 3}, {"train": 9.0, "val": 3}, {"train": True}, {"train": 1 << 63},
        {"train": 10, "val": 3}, {"train": 9}, {"train": 9, "val": 3, "test": 1}, [], "train", {},
        *({"train": 9, "val": 3, name: 0} for name in BAD_NAMES)]),
    *(put("classes", bad) for bad in [
        ["cat", "cat", "owl"], ["cat", "dog", "o\x1b[2Jwl"], ["cat", "dog", "o\u202ewl"],
        ["cat", "dog", 5], "cat", {}, None, ["cat", "dog", "x" * 100_000], ["cat", "dog", "\ud800"],
        [["cat"], "dog", "owl"]]),
    *(put("class_counts", bad) for bad in [
        {"train": {"cat": 99}}, {"train": {"cat": -1}}, {"train": {"cow": 1}}, {"no": {"cat": 1}},
        {"train": [1]}, [], {"train": {"cat": 1.5}}, {"train": {"cat": 1 << 80}}]),
    *(put("members", bad) for bad in [
        ["image.npy", "cls"], ["../x"], ["\x1b"], ["cls", "cls"], [5], "cls", [["cls"]], None]),
    *(put("quarantined", bad) for bad in [-1, 1.5, "1", None, True, 1 << 70]),
    *(put("input_digest", bad) for bad in [5, None, "\x1b[2J", "x" * 1000, []]),
    *(put("config", bad) for bad in [5, None, [], {"other": 1}]),
    *(put("format_version", bad) for bad in [2, "1", None, True, 1.0, "\x1b[2J" * 999]),
    *(put("positions", bad) for bad in [
        5, [], {}, {HEX: SPEC.to_dict()}, {OUTSIDE: SPEC.to_dict()}]),
    *(put("positions", SPEC.digest, bad) for bad in [5, {}, [], {"shape": [4, 6]}]),
    *(put("positions", SPEC.digest, field, bad)
      for field, values in {
          "shape": [[1 << 62, 1 << 62], "46", [4.5, 6], [-4, 6], [0, 6], [True, 6], [10**400, 1]],
          "num_bands": [1 << 62, -1, 0, "3", 2.5, True], "layout": ["../x", 5, ""],
          "max_resolution": [[1e300, 4], ["4", 6], [-1, 4], [10**400, 1], 4, []],
          "more": [1],
      }.items() for bad in values),
    *(put("position_sha256", bad) for bad in [5, {}, {SPEC.digest: OUTSIDE}, {OUTSIDE: HEX}]),
    *(put("position_sha256", SPEC.digest, bad) for bad in BAD_DIGESTS),
    put("\x1b[2J", 5),
    lambda content: content.pop("classes") and content,
]  # fmt: skip

LISTING: list[Change] = [
    *(put(0, "name", bad)
      for bad in [*BAD_NAMES, "/etc/passwd", OUTSIDE, "shard-00003.tar", "shard-0.tar", None]),
    *(put(0, field, bad) for field in ("sha256", "index_sha256") for bad in [*BAD_DIGESTS, None]),
    *(put(0, "number", bad) for bad in [-1, 1, 2, 3, 1 << 62, -(1 << 63), None]),
    *(put(0, "split", bad) for bad in [*BAD_NAMES, "val", "test", None]),
    *(put(0, "samples", bad) for bad in [-5, 0, 4, 6, 1 << 62, (1 << 63) - 1, None]),
    *(put(0, "bytes", bad) for bad in [-512, 0, 1, 1024, 1536, 1 << 62, (1 << 63) - 1, None]),
    lambda rows: [rows[0], *rows],
    lambda rows: rows[::-1],
    lambda rows: rows[1:],
    lambda rows: [],
]  # fmt: skip

SPAN = ("members", 0)
INDEX: list[Change] = [
    *(put(1, *SPAN, "offset", bad) for bad in [
        -1, -512, 0, 512, 1 << 40, 1 << 62, -(1 << 63), None]),
    *(put(1, *SPAN, "length", bad) for bad in [-1, 0, 1 << 20, 1 << 40, 1 << 62, -(1 << 63), None]),
    *(put(1, *SPAN, "name", bad) for bad in [
        *BAD_NAMES, "json", "image.npy", "UPPER", "a" * 99, None]),
    *(put(1, "key", bad) for bad in [
        "a.b", "a/b", "", "a\nb", "\x1b", "k" * 200, "sample-000", None]),
    *(put(1, "target", bad) for bad in [-1, 3, 1 << 62, -(1 << 63)]),
    *(put(1, "split", bad) for bad in ["val", OUTSIDE, None]),
    *(put(1, field, bad) for field in ("sha256", "source_sha256") for bad in [*BAD_DIGESTS, None]),
    *(put(1, "source_uri", bad) for bad in [None]),
    put(1, "members", []),
    put(1, "members", None),
    lambda rows: rows[:-1],
    lambda rows: [*rows, rows[-1]],
    lambda rows: [rows[1], rows[0], *rows[2:]],
    lambda rows: [],
    lambda rows: rows[0]["members"].reverse(),
    put(1, "sha256", HEX),  # last: it can be true, but for what the tar has there
]  # fmt: skip

FACTS: list[Change] = [
    *(put("name", bad) for bad in [*BAD_NAMES, "/etc/passwd", OUTSIDE, "shard-00003.tar", 5, None]),
    *(put("number", bad) for bad in [-1, 1, 3, 0.0, False, None, "0", 1 << 80]),
    *(put("split", bad) for bad in [*BAD_NAMES, "val", 5, None]),
    *(put("samples", bad) for bad in [-1, 4, 6, None, "5", 5.0, 1 << 80]),
    *(put("bytes", bad) for bad in [-512, 0, None, "5", 1 << 80]),
    *(put("sha256", bad) for bad in [*BAD_DIGESTS, None, 5, HEX]),
    put("more", 1),
    lambda facts: [facts],
    lambda facts: facts.pop("name") and facts,
]  # fmt: skip

CASES = [
    pytest.param(part, change, id=f"{part}-{number}")
    for part, changes in {
        "manifest": MANIFEST,
        "listing": LISTING,
        "index": INDEX,
        "facts": FACTS,
    }.items()
    for number, change in enumerate(changes)
]

opened: list[str] = []
"""What was opened since a test has cleared it."""


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.remove", "os.rename", "os.unlink", "shutil.rmtree", "os.link"):
        opened.extend(str(argument) for argument in arguments[:2])


@pytest.fixture(scope="session", autouse=True)
def _audit() -> None:
    sys.addaudithook(_note)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, which no test changes."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    make_set(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it two folders deep, beside a secret that must be neither read nor changed."""
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    copy = tmp_path / "deep" / "set"
    shutil.copytree(whole, copy)
    opened.clear()
    yield copy
    touched = [path for path in opened if "outside" in path or "passwd" in path]
    assert not touched
    assert [*files_of(tmp_path / "outside").items()] == [("secret", b"secret")]
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or path.parent.name == "locks" or len(path.name) == 64


def use(address: Any, cache: Path) -> None:
    """All that is done with a set."""
    shard_set = ShardSet.open(address)
    for split in shard_set.manifest.counts:
        for cost in (1, 1 << 30):  # by ranges, and by whole shards
            remote = RemoteReading(cache_folder=cache, request_cost=cost)
            reader = ShardReader(shard_set, split, remote=remote)
            for sample in reader.read_many(np.arange(len(reader))):
                assert sample.members and sample.key
    for spec in shard_set.manifest.positions.values():
        shard_set.position_table(spec)


@pytest.mark.parametrize(("part", "change"), CASES)
def test_a_set_that_says_what_cannot_be_is_refused(
    folder: Path, tmp_path: Path, part: str, change: Change
) -> None:
    try:
        reseal(folder, **{part: change})
    except UnicodeEncodeError:  # JSON that no encoder of ours can write
        content = json.loads((folder / "manifest.json").read_bytes())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content, sort_keys=True, indent=2) + "\n")
    for address in (folder, upload(folder)):
        for attempt in (functools.partial(use, address, tmp_path / "cache"), None):
            if attempt is None:
                assert_verify_refuses(address)
                continue
            with pytest.raises(ShardError) as refusal:
                attempt()
            assert_plain(str(refusal.value))


def assert_verify_refuses(address: Any) -> None:
    try:
        inspect_shards(str(address))
        problems = verify(address)
    except ShardError as error:
        assert_plain(str(error))
    else:
        for problem in problems:
            assert_plain(f"{problem.file}: {problem.what}")


def assert_plain(text: str) -> None:
    assert text and len(text) < 3000
    assert all(character.isprintable() for character in text), repr(text)


@pytest.mark.parametrize("change", [*LISTING, *INDEX[:-1], *FACTS])
def test_verify_names_what_cannot_be(folder: Path, change: Change) -> None:
    part = next(
        name
        for name, changes in (("listing", LISTING), ("index", INDEX), ("facts", FACTS))
        if change in changes
    )
    reseal(folder, **{part: change})
    try:
        assert verify(folder)
    except ShardError as error:
        assert_plain(str(error))


ALONE: dict[str, dict[str, Any]] = {
    "a class that steers the terminal": {"classes": ["\x1b[2J"], "class_counts": {}},
    "a class of a huge name": {"classes": ["x" * 100_000], "class_counts": {}},
    "classes twice": {"classes": ["cat", "cat"], "class_counts": {}},
    "a configuration that is no object": {
        "config": 5, "config_digest": sha256_hex(canonical_json(5))},
    "a table under another digest": {
        "positions": {HEX: SPEC.to_dict()}, "position_sha256": {HEX: HEX}},
}  # fmt: skip


@pytest.mark.parametrize("fields", ALONE.values(), ids=ALONE)
def test_each_check_of_a_manifest_holds_by_itself(folder: Path, fields: dict[str, Any]) -> None:
    """No other field contradicts these."""
    reseal(folder, manifest=lambda content: content | fields)
    with pytest.raises(ShardError, match="do not use this set") as refusal:
        ShardSet.open(folder)
    assert_plain(str(refusal.value))


@pytest.mark.parametrize("name", ["../outside/secret", "index/../manifest.json", "/etc/passwd",
                                  "", ".", "..", "index//00000.parquet", "a\0b"])  # fmt: skip
def test_a_file_s_name_leads_to_no_other_folder(folder: Path, name: str) -> None:
    with pytest.raises(ShardError, match="is no path within the set"):
        open_file(folder, name)


def test_a_quarantine_with_a_missing_field_is_refused(folder: Path) -> None:
    path = folder / "quarantine.parquet"
    schema = read_quarantine_table(path).schema
    row = {"source_uri": None, "split": "train", "reason": "x", "traceback": ""}
    path.write_bytes(encode_parquet(pa.Table.from_pylist([row], schema=schema)))
    with pytest.raises(ShardError, match="a field is missing"):
        read_quarantine(path)


def test_resealing_alone_leaves_a_set_that_is_read(folder: Path, tmp_path: Path) -> None:
    reseal(folder)
    for address in (folder, upload(folder)):
        use(address, tmp_path / "cache")
        assert verify(address) == []


def test_a_set_over_http_cannot_name_a_path(folder: Path, tmp_path: Path) -> None:
    """The name of a file in the cache is the digest that the listing gives."""
    reseal(folder, listing=put(0, "sha256", OUTSIDE))
    with ShardServer(folder) as server, pytest.raises(ShardError, match="64 hexadecimal digits"):
        use(server.url, tmp_path / "cache")


def test_a_wrong_size_does_not_cost_another_set_its_cached_file(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    use(upload(whole), cache)
    before = {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()}
    assert len(before) == 3
    size = (folder / "shard-00000.tar").stat().st_size
    with (folder / "shard-00000.tar").open("ab") as tar:
        tar.write(bytes(512))

    reseal(folder, listing=put(0, "bytes", size + 512), facts=put("bytes", size + 512))
    with pytest.raises(ShardError):
        use(upload(folder), cache)
    assert {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()} == before


def test_files_in_the_cache_folder_that_are_not_its_own_stay(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(bytes(50_000))
    (tmp_path / "music.part").write_bytes(bytes(50_000))
    shard_set = ShardSet.open(upload(whole))
    remote = RemoteReading(cache_folder=tmp_path, cache_bytes=13_000, request_cost=1 << 30)
    for split in ("train", "val"):
        reader = ShardReader(shard_set, split, remote=remote)
        for number in range(len(reader)):
            reader.read(number)
    assert {"thesis.tex", "music.part"} < {path.name for path in tmp_path.iterdir()}


FILES = [
    "manifest.json",
    "shards.parquet",
    "quarantine.parquet",
    "shard-00000.tar",
    "index/00000.parquet",
    f"positions/{SPEC.digest}.npy",
]


def _link(path: Path) -> None:
    shutil.copy(path, path.parents[2] / "outside" / "copy")
    path.unlink()
    path.symlink_to(path.parents[2] / "outside" / "copy")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def use_all(folder: Path) -> None:
    """All that is done with a local set, each of it although another failed."""
    failed = []
    for attempt in (
        lambda: use(folder, folder.parent / "cache"),
        lambda: read_quarantine(folder / "quarantine.parquet"),
        lambda: rewrite_shard(folder, folder.parent / "new", 0, ()),
        lambda: link_shard(folder, folder.parent / "linked", 0),
        lambda: inspect_shards(str(folder)),
        lambda: Ledger.read(folder),
    ):
        try:
            attempt()
        except ShardError as error:
            assert_plain(str(error))
            failed.append(error)
    assert failed


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("put_instead", [_link, _pipe, _device, _folder])
def test_only_regular_files_of_the_set_itself_are_read(
    whole: Path, tmp_path: Path, name: str, put_instead: Callable[[Path], None]
) -> None:
    folder = tmp_path / "deep" / "set"
    shutil.copytree(whole, folder)
    (tmp_path / "outside").mkdir()
    target = folder / name
    shutil.copy(target, tmp_path / "outside" / "copy")
    if put_instead is _link:
        target.unlink()
        target.symlink_to(tmp_path / "outside" / "copy")
    else:
        put_instead(target)
    use_all(folder)
    try:
        assert any("regular files" in problem.what for problem in verify(folder))
    except ShardError as error:
        assert "regular files" in str(error)


def test_a_folder_within_a_set_may_be_no_link(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "index", tmp_path / "elsewhere")
    (folder / "index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match="regular files"):
        ShardReader(ShardSet.open(folder), "train").read(0)
    assert read_committed(folder, 0) is None


def test_a_set_itself_may_lie_behind_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    use(tmp_path / "link", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "size"), [("manifest.json", 1 << 40), ("shards.parquet", 1 << 40)]
)
def test_a_file_of_a_size_that_it_cannot_have_is_not_read(
    folder: Path, name: str, size: int
) -> None:
    os.truncate(folder / name, size)  # takes no room
    with pytest.raises(ShardError, match="has more than"):
        ShardSet.open(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"format_version": 1, "config": ' + b"[" * 100_000,
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b'{"format_version": NaN}',
        b'{"format_version": 1, "config": {"a": 1e999}}',
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b'[{"format_version": 1}]',
    ],
)
def test_json_of_any_kind_is_refused_in_one_line(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(ShardError) as refusal:
        ShardSet.open(folder)
    assert_plain(str(refusal.value))


def npy(header: str, payload: bytes = b"") -> bytes:
    text = header.encode().ljust(118)[:-1] + b"\n" if len(header) < 118 else header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + payload


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {MOST}, {MOST}), }}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + "f" * 6000 + ",), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (9,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,) * 10**9, }",
        "(" * 5000,
        "-" * 9000 + "1",
        "",
    ],
)
def test_the_header_of_an_array_is_bounded(folder: Path, header: str) -> None:
    data = npy(header)
    with pytest.raises(ShardError) as refusal:
        decode_npy(data)
    assert_plain(str(refusal.value))
    (folder / "positions" / f"{SPEC.digest}.npy").write_bytes(data)
    seal(folder)
    with pytest.raises(ShardError):
        ShardSet.open(folder).position_table(SPEC)
    with pytest.raises(ShardError):
        read_position_table(folder, SPEC.digest)


@pytest.mark.parametrize("digest", BAD_DIGESTS)
def test_a_position_table_is_named_by_a_digest(folder: Path, digest: str) -> None:
    with pytest.raises(ShardError):
        read_position_table(folder, digest)


def test_a_hostile_ledger_is_no_ledger(folder: Path) -> None:
    digest = ShardSet.open(folder).digest.encode()
    good = Ledger.read(folder).table
    about = {b"digest": digest, b"seconds": b"1", b"places": b'{"train": "/data"}'}

    def read(rows: pa.Table, **changes: bytes) -> Ledger:
        metadata = about | {name.encode(): value for name, value in changes.items()}
        ledger_path(folder).write_bytes(encode_parquet(rows.replace_schema_metadata(metadata)))
        return Ledger.read(folder)

    assert read(good).addresses == {"train": "/data"}
    for seconds in (b"nan", b"inf", b"-1", b"x", b"\xff", b""):
        assert not read(good, seconds=seconds).addresses
    for addresses in (b"[]", b"5", b'{"train": 5}', b'{"../x": "a"}', b"[" * 99_999, b"\xff",
                   b'{"train": "\\u001b[2J"}', b'{"train": ""}'):  # fmt: skip
        assert not read(good, places=addresses).addresses
    longest = "/" + "a" * 9_999
    assert read(good, places=json.dumps({"train": longest}).encode()).addresses
    assert not read(good, places=json.dumps({"train": f"{longest}a"}).encode()).addresses
    for reading in (b"[]", b'{"train": "/"}', b'{"allow": "/"}', b'{"allow": [5]}', b"{"):
        assert not read(good, reading=reading).addresses
    for column, value in (("shard", 7), ("shard", -1), ("sha256", OUTSIDE), ("split", "../x"),
                          ("target", -5), ("uri", None)):  # fmt: skip
        rows = good.to_pylist()
        rows[0][column] = value
        assert not read(pa.Table.from_pylist(rows, schema=good.schema)).addresses
    assert not read(pa.concat_tables([good, good])).addresses


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70)
    | st.sampled_from([OUTSIDE, HEX, "train", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@pytest.fixture(scope="session")
def fuzzed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that a fuzzer may change."""
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("fuzz") / "deep" / "set"))


def _only_shard_errors(folder: Path) -> None:
    try:
        use(folder, folder.parent / "cache")
    except ShardError as error:
        assert_plain(str(error))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_manifest_ends_in_a_shard_error_or_is_read(
    fuzzed: Path, whole: Path, data: st.DataObject
) -> None:
    shutil.copy(whole / "manifest.json", fuzzed)
    content = json.loads((whole / "manifest.json").read_bytes())
    field = data.draw(st.sampled_from(sorted(content)))
    value = data.draw(VALUES)
    if isinstance(content[field], dict) and data.draw(st.booleans()):
        content[field][data.draw(st.sampled_from(sorted(content[field])) | st.text())] = value
    else:
        content[field] = value
    try:
        seal(fuzzed, lambda _: {k: v for k, v in content.items() if k != "checksum"})
    except (ValueError, TypeError):
        text = json.dumps(content, sort_keys=True, indent=2, skipkeys=True) + "\n"
        (fuzzed / "manifest.json").write_text(text)
    _only_shard_errors(fuzzed)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_index_ends_in_a_shard_error_or_is_read(
    fuzzed: Path, whole: Path, data: st.DataObject
) -> None:
    shutil.rmtree(fuzzed)
    shutil.copytree(whole, fuzzed)
    kinds = {"key": st.text(), "split": st.text(), "source_uri": st.text(),
             "source_sha256": st.text(), "sha256": st.text() | st.just(sha256_hex(b"")),
             "target": st.integers(-(1 << 63), (1 << 63) - 1)}  # fmt: skip
    numbers = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-600, 20_000)

    def change(rows: list[dict[str, Any]]) -> None:
        row = data.draw(st.sampled_from(rows))
        if data.draw(st.booleans()):
            span = data.draw(st.sampled_from(row["members"]))
            field = data.draw(st.sampled_from(["name", "offset", "length"]))
            span[field] = data.draw(st.none() | (st.text() if field == "name" else numbers))
        else:
            field = data.draw(st.sampled_from(sorted(kinds)))
            row[field] = data.draw(st.none() | kinds[field])

    reseal(fuzzed, index=change)
    _only_shard_errors(fuzzed)
