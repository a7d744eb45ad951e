"""A shard set of 240 samples, its readers over HTTP, and checks of what they read."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from shards import Sample, ShardReader, ShardSet, epoch_positions
from shards.location import Location, Retry
from shards.remote_tars import RemoteReading

NUM_SHARDS, SHARD_SIZE = 6, 40
EXACT = {"request_bytes": 1 << 19, "early_share": 0.0}
"""Each shard is requested in the same parts, however quickly the server answers."""
QUICK = Retry(attempts=3, first_delay=0.01)


def make_sample(number: int) -> Sample:
    pixels = np.random.default_rng(number).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    return Sample(f"s{number:03d}", {"image.jpg": pixels}, None, f"raw/{number}.jpg", "0" * 64)


def open_reader(url: str, cache: Path, **options: Any) -> ShardReader:
    reading = RemoteReading(cache_folder=cache, **(EXACT | options))
    return ShardReader(ShardSet.open(Location(url, QUICK)), "train", remote=reading)


def digest_of(reader: ShardReader, number: int) -> str:
    return hashlib.sha256(reader.read(number).members["image.jpg"]).hexdigest()


def expected(number: int) -> str:
    return hashlib.sha256(make_sample(number).members["image.jpg"]).hexdigest()


def read_epoch(reader: ShardReader, **options: Any) -> list[int]:
    """Read an epoch in batches of 16, check every sample, and return the order of the samples."""
    order = []
    where = {"seed": 0, "epoch": 0, "rank": 0, "world_size": 1, "batch_size": 16}
    for numbers in epoch_positions(reader, **(where | options)):
        for sample in reader.read_many(numbers):
            order.append(sample.index)
            content = hashlib.sha256(sample.members["image.jpg"]).hexdigest()
            assert content == expected(sample.index)
    return order
