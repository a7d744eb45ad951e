"""A set with random values is read or refused with a `ShardError`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile_sets import HEX, OUTSIDE, assert_plain, reseal, seal, use
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import ShardError
from shards.digests import sha256_hex

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70)
    | st.sampled_from([OUTSIDE, HEX, "train", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@pytest.fixture(scope="session")
def fuzzed(whole_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that a fuzzer may change."""
    return Path(shutil.copytree(whole_set, tmp_path_factory.mktemp("fuzz") / "deep" / "set"))


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
    fuzzed: Path, whole_set: Path, data: st.DataObject
) -> None:
    shutil.copy(whole_set / "manifest.json", fuzzed)
    content = json.loads((whole_set / "manifest.json").read_bytes())
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
    fuzzed: Path, whole_set: Path, data: st.DataObject
) -> None:
    shutil.rmtree(fuzzed)
    shutil.copytree(whole_set, fuzzed)
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
