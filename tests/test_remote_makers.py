"""Batches that are made in other processes: the same batches in the same order."""

from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import torch
from shard_sets import UNEVEN, make_sized_set

from cluster.placement import Place
from cluster.remote_makers import RemoteMakers
from shards import ShardError, ShardReader
from shards.collate import decode_arrays
from shards.loader import ShardBatch, ShardLoader
from shards.raw_sample import RawSample

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return make_sized_set(tmp_path_factory.mktemp("loader") / "set", UNEVEN)


@pytest.fixture(scope="module")
def makers(ray_cluster: None) -> RemoteMakers:
    return RemoteMakers(Place({"CPU": 0.5}), 2)


def decode_some(sample: RawSample) -> dict[str, np.ndarray]:
    arrays = decode_arrays(sample)
    if arrays["number.npy"][0] == 20:
        raise ValueError("not this one")
    return arrays


def same(one: ShardBatch, other: ShardBatch) -> bool:
    fields = one.fields.keys() == other.fields.keys() and all(
        torch.equal(one.fields[name], other.fields[name]) for name in one.fields
    )
    rest = (one.numbers.tolist(), one.weights.tolist(), one.bad, one.samples)
    return fields and rest == (
        other.numbers.tolist(), other.weights.tolist(), other.bad, other.samples,
    )  # fmt: skip


def workers_that_make() -> set[int]:
    processes = psutil.Process().children(recursive=True)
    return {each.pid for each in processes if "_Maker" in " ".join(each.cmdline())}


@pytest.mark.parametrize("rank", [0, 1])
def test_the_batches_and_their_order_are_the_same_though_a_process_is_lost(
    rank: int, reader: ShardReader, makers: RemoteMakers
) -> None:
    options = {"batch_size": 2, "rank": rank, "world_size": 2, "seed": 5}
    here = ShardLoader(reader, **options)
    there = ShardLoader(reader, made_elsewhere=makers, **options)
    for loader in (here, there):
        loader.seek(1, 8)
    for epoch in (1, 2):
        expected, found = [*here], list[ShardBatch]()
        for batch in there:
            found.append(batch)
            if epoch == 1 and len(found) == 2:
                lost = next(iter(workers_that_make()))
                psutil.Process(lost).kill()
        assert len(found) == len(expected) > 8
        assert all(map(same, found, expected))
        assert there.state_dict() == here.state_dict()


def test_what_cannot_be_decoded_is_told_alike(reader: ShardReader, makers: RemoteMakers) -> None:
    options = {"batch_size": 4, "decode": decode_some, "shuffle": False, "made_elsewhere": makers}
    bad = [each for batch in ShardLoader(reader, skip_bad=True, **options) for each in batch.bad]
    assert [reason for _, reason in bad] == ["not this one"]
    batches: Iterator[ShardBatch] = iter(ShardLoader(reader, **options))
    with pytest.raises(ShardError, match=r"cannot be decoded .not this one."):
        list(batches)


def test_two_ways_to_make_batches_are_refused(reader: ShardReader, makers: RemoteMakers) -> None:
    with pytest.raises(ShardError, match="batches are made elsewhere; give 0"):
        ShardLoader(reader, batch_size=2, num_workers=1, made_elsewhere=makers)
