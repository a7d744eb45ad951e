"""Small real shard sets for the tests of `shards`."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import (
    Manifest,
    PositionSpec,
    Quarantined,
    RawSample,
    Sample,
    ShardReader,
    ShardSet,
    decode_npy,
    encode_npy,
    publish,
    write_position_table,
    write_shard,
)
from shards.digests import canonical_json, sha256_hex
from shards.parquet import encode_parquet

CLASSES = ("cat", "dog", "owl")
SPEC = PositionSpec(shape=(4, 6), num_bands=3, max_resolution=(4, 6))
PLAN = [("train", 5), ("train", 0), ("val", 3), ("train", 4)]
UNEVEN = [5, 0, 1, 17, 9, 3, 8]


def make_sample(number: int) -> Sample:
    """A sample whose bytes depend on `number` only; its members have uneven lengths."""
    numbers = np.random.default_rng(number)
    members = {
        "image.npy": encode_npy(numbers.integers(0, 256, (3 + number % 5, 7, 3), dtype=np.uint8)),
        "cls": str(number % 3).encode(),
        "json": json.dumps({"number": number}).encode(),
    }
    if number % 2:
        members["audio.npy"] = encode_npy(numbers.integers(-9, 9, 11 * number, dtype=np.int16))
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return Sample(f"sample-{number:03d}", members, number % 3, f"raw/{number}.png", digest)


def make_samples(start: int, stop: int) -> Iterator[Sample]:
    """`make_sample` of each number in [start, stop)."""
    return map(make_sample, range(start, stop))


def stage(staging: Path, seed: int = 0) -> None:
    """The shards of PLAN, each with one bad source, and a position table; not yet published."""
    first = 100 * seed
    for number, (split, size) in enumerate(PLAN):
        bad = Quarantined(f"raw/bad-{number}.png", split, "truncated", "Traceback ...")
        write_shard(staging, number, split, [*make_samples(first, first + size), bad])
        first += size
    table = np.random.default_rng(seed).normal(size=(SPEC.num_tokens, SPEC.num_channels))
    write_position_table(staging, SPEC, table.astype(np.float32))


def publish_staged(staging: Path, final: Path, **options: Any) -> Manifest:
    """Publishes what `stage` wrote."""
    return publish(
        staging,
        final,
        numbers=range(len(PLAN)),
        config={"image_size": 7},
        input_digest="0" * 64,
        classes=CLASSES,
        positions=[SPEC],
        **options,
    )


def make_set(final: Path, seed: int = 0) -> Manifest:
    """A published set of 12 samples in 3 shards: 9 train, 3 val."""
    staging = final.with_name(final.name + ".staging")
    stage(staging, seed)
    return publish_staged(staging, final)


def files_of(folder: Path) -> dict[str, bytes]:
    """All files in `folder`, by their paths within it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def upload(folder: Path) -> str:
    """Copies a set to fsspec's memory file system, which holds nothing else then; its URL."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name, data in files_of(folder).items():
        memory.pipe(f"/bucket/set/{name}", data)
    return "memory://bucket/set"


def flip_bit(path: Path, offset: int) -> None:
    """Changes one bit of the byte at `offset`."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def make_sized_set(final: Path, sizes: Sequence[int], split: str = "train") -> ShardReader:
    """A reader of a published set with a shard of each size; sample n holds n in 'number.npy'.

    Its 'sound.npy' has n % 5 + 1 entries, all n.
    """
    staging = final.with_name(final.name + ".staging")
    first = 0
    for number, size in enumerate(sizes):
        write_shard(staging, number, split, map(_numbered, range(first, first + size)))
        first += size
    publish(staging, final, numbers=range(len(sizes)), config={}, input_digest="", classes=CLASSES)
    return ShardReader(ShardSet.open(final), split)


def _numbered(number: int) -> Sample:
    members = {
        "number.npy": encode_npy(np.array([number, -number], np.int32)),
        "sound.npy": encode_npy(np.full(number % 5 + 1, number, np.int16)),
    }
    return Sample(f"sample-{number:05d}", members, number % 3, f"raw/{number}.wav", "0" * 64)


def write_synthetic(folder: Path, num_shards: int, samples_per_shard: int) -> None:
    """The manifest and `shards.parquet` of a set of any size, and nothing else of it."""
    numbers = pa.array(np.arange(num_shards, dtype=np.int64))
    names = pc.binary_join_element_wise(
        "shard-", pc.utf8_lpad(numbers.cast(pa.string()), 5, "0"), ".tar", ""
    )
    hashes = [
        pa.array([sha256_hex(b"%d" % n) for n in range(i, 2 * num_shards, 2)]) for i in (0, 1)
    ]
    table = pa.table(
        {
            "number": numbers,
            "name": names,
            "split": pa.repeat("train", num_shards),
            "samples": pa.array(np.full(num_shards, samples_per_shard, np.int64)),
            "bytes": pa.array(np.full(num_shards, 1 << 27, np.int64)),
            "sha256": hashes[0],
            "index_sha256": hashes[1],
        }
    )
    shard_table = encode_parquet(table)
    manifest = Manifest(
        config={},
        config_digest=sha256_hex(canonical_json({})),
        input_digest="",
        classes=(),
        counts={"train": num_shards * samples_per_shard},
        class_counts={},
        members=("image.npy",),
        quarantined=0,
        positions={},
        position_sha256={},
        shards_sha256=sha256_hex(shard_table),
        quarantine_sha256=sha256_hex(b""),
    )
    (folder / "shards.parquet").write_bytes(shard_table)
    (folder / "manifest.json").write_bytes(manifest.encode())


def halves(sample: RawSample) -> dict[str, np.ndarray]:
    """A decoder of one's own; sample 7 is bad."""
    number = decode_npy(sample.members["number.npy"])
    if number[0] == 7:
        raise OSError("a bad one")
    return {"number.npy": number, "half": np.array(number[0] / 2, np.float32)}
