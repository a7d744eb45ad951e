"""A shard is plain WebDataset, the same bytes every time, and there whole or not at all."""

import resource
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from shard_sets import files_of, make_sample, make_samples

from shards import (
    Quarantined,
    Sample,
    ShardError,
    decode_npy,
    encode_npy,
    read_committed,
    read_quarantine,
    write_shard,
)
from shards.tar import _header


def test_webdataset_and_tarfile_read_the_same_samples(tmp_path: Path) -> None:
    samples = list(make_samples(0, 6))
    samples.append(Sample("clé-ü", {"txt": b"", "cls": b"1"}, 1, "raw/ü.txt", "0" * 64))
    info = write_shard(tmp_path, 3, "train", samples)

    read = list(webdataset.WebDataset(str(tmp_path / info.name), shardshuffle=False))
    assert [sample.pop("__key__") for sample in read] == [sample.key for sample in samples]
    members = [{k: v for k, v in sample.items() if not k.startswith("__")} for sample in read]
    assert members == [sample.members for sample in samples]

    with tarfile.open(tmp_path / info.name) as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in tar} == {(0, 0, 0, 0o644, "")}
        for sample in samples:
            for name, content in sample.members.items():
                file = tar.extractfile(f"{sample.key}.{name}")
                assert file is not None and file.read() == content


def test_the_same_samples_give_the_same_bytes_at_another_time(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a", 0, "train", make_samples(0, 6))
    time.sleep(1.1)
    reordered = (
        Sample(s.key, dict(reversed(s.members.items())), s.target, s.source_uri, s.source_sha256)
        for s in make_samples(0, 6)
    )
    second = write_shard(tmp_path / "b", 0, "train", reordered)
    assert first == second
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert set(files_of(tmp_path / "a")) == {"shard-00000.tar", "index/00000.parquet"}


def test_the_index_says_where_every_member_lies(tmp_path: Path) -> None:
    samples = list(make_samples(0, 6))
    samples.append(Sample("no-class", {"bin": b"\x00" * 512}, None, "raw/x", "0" * 64))
    write_shard(tmp_path, 7, "val", samples)
    tar = (tmp_path / "shard-00007.tar").read_bytes()
    rows = pq.read_table(tmp_path / "index" / "00007.parquet").to_pylist()
    assert [row["key"] for row in rows] == [sample.key for sample in samples]
    assert [row["target"] for row in rows] == [0, 1, 2, 0, 1, 2, None]
    assert {row["split"] for row in rows} == {"val"}
    assert [row["source_uri"] for row in rows] == [sample.source_uri for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        spans = {m["name"]: slice(m["offset"], m["offset"] + m["length"]) for m in row["members"]}
        assert {name: tar[span] for name, span in spans.items()} == sample.members


def test_a_finished_shard_is_known_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    assert read_committed(tmp_path, 0) is None
    info = write_shard(tmp_path, 0, "train", make_samples(0, 3))
    assert read_committed(tmp_path, 0) == info

    tar = tmp_path / info.name
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    assert read_committed(tmp_path, 0) is None
    tar.unlink()
    assert read_committed(tmp_path, 0) is None
    tar.write_bytes(whole)
    assert read_committed(tmp_path, 0) == info
    (tmp_path / "index" / "00000.parquet").write_bytes(b"PAR1 and nothing else")
    assert read_committed(tmp_path, 0) is None


def test_a_shard_without_samples_is_finished_by_its_index_alone(tmp_path: Path) -> None:
    bad = Quarantined("raw/b.png", "train", "truncated", "")
    info = write_shard(tmp_path, 2, "train", [bad])
    assert (info.samples, info.bytes) == (0, 0)
    assert read_committed(tmp_path, 2) == info
    assert set(files_of(tmp_path)) == {"index/00002.parquet", "quarantine/00002.parquet"}
    assert read_quarantine(tmp_path / "quarantine" / "00002.parquet") == [bad]


def test_a_failing_source_leaves_nothing_behind_and_its_error_is_its_own(tmp_path: Path) -> None:
    def samples():
        yield make_sample(0)
        raise FileNotFoundError("raw/1.png")

    with pytest.raises(FileNotFoundError, match=r"raw/1\.png"):
        write_shard(tmp_path, 0, "train", samples())
    assert files_of(tmp_path) == {}


def test_a_full_disk_is_one_line_and_no_temporary_file(tmp_path: Path) -> None:
    big = Sample("big", {"bin": bytes(3 << 20)}, None, "raw/big", "0" * 64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(ShardError) as caught:
            write_shard(tmp_path, 0, "train", [big])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "shard-00000.tar: cannot be written (File too large)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path) == {}


def test_a_key_comes_once_in_a_shard(tmp_path: Path) -> None:
    samples = [make_sample(0), make_sample(1), make_sample(0)]
    with pytest.raises(ShardError, match="two samples have the key 'sample-000'"):
        write_shard(tmp_path, 0, "train", samples)
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "a\nb", "a\x00", "\x7f", "\udc80"])
def test_keys_that_tar_or_webdataset_would_take_apart_are_refused(key: str) -> None:
    with pytest.raises(ShardError) as caught:
        Sample(key, {"cls": b"0"}, 0, "raw/a", "0" * 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("member", ["", "CLS", ".cls", "a/b", "a..b", "image.", "__key__"])
def test_members_that_webdataset_would_rename_are_refused(member: str) -> None:
    with pytest.raises(ShardError, match="rename it"):
        Sample("a", {member: b"0"}, 0, "raw/a", "0" * 64)


def test_names_fill_the_header_and_no_more() -> None:
    Sample("k" * 96, {"cls": b"0"}, 0, "raw/a", "0" * 64)
    with pytest.raises(ShardError, match="shorten the key"):
        Sample("é" * 49, {"cls": b"0"}, 0, "raw/a", "0" * 64)
    with pytest.raises(ShardError, match="no members"):
        Sample("a", {}, 0, "raw/a", "0" * 64)
    with pytest.raises(ShardError, match="not UTF-8"):
        Sample("a", {"cls": b"0"}, 0, "raw/\udcff", "0" * 64)


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/."), min_size=1)
    .map(lambda key: key.encode()[:90].decode(errors="ignore"))
    .filter(bool),
    st.integers(0, 8**11 - 1),
)
def test_headers_are_those_of_tarfile(key: str, length: int) -> None:
    info = tarfile.TarInfo(f"{key}.image.npy")
    info.size = length
    expected = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    assert _header(info.name, length) == expected


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (4, 3, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "<i2", ">f4", "float16", "bool", "complex64"])
def test_arrays_survive_npy_without_a_copy(shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    data = encode_npy(np.asarray(array, order="F"))
    decoded = decode_npy(memoryview(data))
    assert decoded.dtype == array.dtype and decoded.shape == shape
    np.testing.assert_array_equal(decoded, array)
    assert not decoded.flags.writeable
    if array.size:
        assert np.shares_memory(decoded, np.frombuffer(data, np.uint8))


def test_npy_of_another_length_than_its_header_says_is_refused() -> None:
    data = encode_npy(np.arange(6, dtype=np.int32).reshape(2, 3))
    for damaged in (data[:-1], data + b"\0", data[:9], data[:60], b""):
        with pytest.raises(ShardError):
            decode_npy(damaged)


def test_npy_that_needs_pickle_is_refused_both_ways() -> None:
    with pytest.raises(ShardError, match="needs pickle"):
        encode_npy(np.array([{}]))
    data = encode_npy(np.zeros(1)).replace(b"'<f8'", b"'|O' ")
    with pytest.raises(ShardError, match="object"):
        decode_npy(data)


@given(st.integers(0, 127), st.integers(0, 255))
def test_a_fuzzed_npy_header_raises_nothing_but_shard_error(offset: int, value: int) -> None:
    data = bytearray(encode_npy(np.arange(6, dtype=np.int32)))
    data[offset] = value
    try:
        decode_npy(bytes(data))
    except ShardError as error:
        assert "\n" not in str(error)
