"""Sets whose files contradict each other are refused in one line. Nothing outside is read."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_sets import (
    BAD_DIGESTS,
    BAD_NAMES,
    HEX,
    OUTSIDE,
    Change,
    assert_plain,
    put,
    reseal,
    use,
)
from shard_sets import SPEC, upload

from pipeline.preprocess.inspect_shards import inspect_shards
from shards import (
    ShardError,
    ShardReader,
    ShardSet,
    verify,
)
from shards.digests import canonical_json, sha256_hex

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

SHARD_TABLE: list[Change] = [
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
        "a.b", "a/b", "", "a\nb", "\x1b", "\x7f", "é.b", "\x9f", "k" * 200, "sample-000", None]),
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
        "shard_table": SHARD_TABLE,
        "index": INDEX,
        "facts": FACTS,
    }.items()
    for number, change in enumerate(changes)
]


@pytest.mark.parametrize(("part", "change"), CASES)
def test_a_set_that_says_what_cannot_be_is_refused(
    set_copy: Path, tmp_path: Path, part: str, change: Change
) -> None:
    try:
        reseal(set_copy, **{part: change})
    except UnicodeEncodeError:  # JSON that no encoder of ours can write
        content = json.loads((set_copy / "manifest.json").read_bytes())
        change(content)
        (set_copy / "manifest.json").write_text(
            json.dumps(content, sort_keys=True, indent=2) + "\n"
        )
    for address in (set_copy, upload(set_copy)):
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


@pytest.mark.parametrize("change", [*SHARD_TABLE, *INDEX[:-1], *FACTS])
def test_verify_names_what_cannot_be(set_copy: Path, change: Change) -> None:
    part = next(
        name
        for name, changes in (("shard_table", SHARD_TABLE), ("index", INDEX), ("facts", FACTS))
        if change in changes
    )
    reseal(set_copy, **{part: change})
    try:
        assert verify(set_copy)
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
def test_each_check_of_a_manifest_holds_by_itself(set_copy: Path, fields: dict[str, Any]) -> None:
    """No other field contradicts these."""
    reseal(set_copy, manifest=lambda content: content | fields)
    with pytest.raises(ShardError, match="do not use this set") as refusal:
        ShardSet.open(set_copy)
    assert_plain(str(refusal.value))


@pytest.mark.parametrize(
    "change",
    [put(1, "source_sha256", OUTSIDE), put(1, "source_uri", None), put(1, "split", "val")],
)
def test_sources_that_cannot_be_are_refused_once_they_are_asked_for(
    set_copy: Path, change: Change
) -> None:
    reseal(set_copy, index=change)
    samples = ShardReader(ShardSet.open(set_copy), "train").read_many(np.arange(5))
    assert all(sample.key and sample.members for sample in samples)
    with pytest.raises(ShardError, match="do not use this set"):
        _ = samples[0].source_uri
    assert verify(set_copy)


def test_a_key_may_have_characters_beyond_ascii(set_copy: Path) -> None:
    reseal(set_copy, index=put(1, "key", "clé-ж"))
    assert ShardReader(ShardSet.open(set_copy), "train").read(1).key == "clé-ж"


def test_resealing_alone_leaves_a_set_that_is_read(set_copy: Path, tmp_path: Path) -> None:
    reseal(set_copy)
    for address in (set_copy, upload(set_copy)):
        use(address, tmp_path / "cache")
        assert verify(address) == []
