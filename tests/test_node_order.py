"""The order in which each node reads shards of its own, at any number of ranks."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from remote_sets import NUM_SHARDS, SHARD_SIZE, open_reader, read_epoch
from shard_server import ShardServer

from shards import ShardError, ShardReader, ShardSet
from shards.epoch import EpochPlan
from shards.loader import ShardLoader
from shards.node_order import NodeOrder
from shards.order import EpochOrder

shard_sizes = st.lists(st.integers(0, 30), max_size=30).map(lambda s: np.array(s, np.int64))
windows = st.none() | st.integers(1, 12)
keys = st.none() | st.binary(max_size=64)


def listed(order: EpochOrder) -> list[int]:
    return order(np.arange(order.num_samples)).tolist()


def steps(order: EpochOrder, world_size: int, batch: int, start: int = 0) -> list[list[int]]:
    """The global batches, whose rows come from the ranks in their order."""
    plans = [
        EpochPlan(order, rank, world_size, -(-batch // world_size), start, True, batch)
        for rank in range(world_size)
    ]
    return [
        [number for plan in plans for number in plan[step].tolist() if number >= 0]
        for step in range(len(plans[0]))
    ]


@given(shard_sizes, windows, keys, st.integers(2, 9))
def test_every_sample_comes_once(sizes, window, key, nodes):
    order = NodeOrder(sizes, key, window, nodes)
    assert sorted(listed(order)) == list(range(int(sizes.sum())))
    # At any positions, in any order.
    some = np.random.default_rng(0).permutation(order.num_samples)
    assert order(some).tolist() == np.array(listed(order), int)[some].tolist()


@given(shard_sizes, windows, keys, st.integers(1, 4), st.integers(1, 3), st.integers(1, 6))
def test_a_step_is_the_same_at_any_world_size(sizes, window, key, nodes, turns, world_size):
    order = NodeOrder(sizes, key, window, nodes)
    batch = nodes * turns
    world_size = min(world_size, batch)
    whole = steps(order, 1, batch)
    assert steps(order, world_size, batch) == whole
    # Half of the epoch, then at another world size.
    half = len(whole) // 2
    assert steps(order, world_size, batch, start=half * batch) == whole[half:]
    # Each step has as many samples of each part, and the steps are those of the order.
    numbers = listed(order)
    for index, step in enumerate(whole):
        assert sorted(step) == sorted(numbers[index * batch : (index + 1) * batch])


@pytest.mark.parametrize("window", [None, 16])
def test_each_shard_is_read_by_one_node_or_by_two_where_it_is_cut(window):
    sizes = np.random.default_rng(0).integers(20, 60, 97)
    ends = np.cumsum(sizes)
    order = NodeOrder(sizes, b"key", window, 4)
    for ranks_of_a_node in (1, 2):
        world_size = 4 * ranks_of_a_node
        readers: Counter[int] = Counter()
        for node in range(4):
            shards: set[int] = set()
            for rank in range(node * ranks_of_a_node, (node + 1) * ranks_of_a_node):
                plan = EpochPlan(order, rank, world_size, 48 // world_size, 0, True)
                for step in range(len(plan)):
                    shards |= {*np.searchsorted(ends, plan[step], side="right").tolist()}
            readers.update(shards)
        assert len(readers) == 97
        assert sum(count > 1 for count in readers.values()) <= 3
        assert max(readers.values()) == 2
    # With the plain order, every node reads every shard.
    plain = EpochPlan(EpochOrder(sizes, b"key", window), 0, 4, 12, 0, True)
    seen = {
        *np.searchsorted(
            ends, np.concatenate([plain[step] for step in range(len(plain))]), side="right"
        ).tolist()
    }
    assert len(seen) > 90


def test_the_shards_at_a_step_are_named_before_they_are_read():
    sizes = np.random.default_rng(1).integers(5, 30, 50)
    order = NodeOrder(sizes, b"key", 12, 3)
    for rank in range(3):
        plan = EpochPlan(order, rank, 3, 5, 0, False)
        named: set[int] = set()
        for step in range(len(plan)):
            positions = plan._positions(step)
            if not len(positions):
                continue
            read = {
                *np.searchsorted(np.cumsum(sizes), plan[step][: len(positions)], "right").tolist()
            }
            now, later = order.shards_at(positions)
            assert read <= {*now}
            assert step == 0 or step >= len(plan) - 1 or read <= named
            # A batch has rows of at most two windows, of four shards each, the first one cut.
            assert max(len(now), len(later)) <= 2 * 5 or step == len(plan) - 1
            named |= {*now, *later}


def test_two_nodes_fetch_a_remote_set_once_between_them(set_server: ShardServer, tmp_path: Path):
    def fetched(nodes: int, rank: int) -> int:
        set_server.bytes_sent.clear()
        reader = open_reader(set_server.url, tmp_path / f"{nodes}-{rank}")
        read_epoch(reader, nodes=nodes, window=2, rank=rank, world_size=2, batch_size=8)
        return sum(size for path, size in set_server.bytes_sent.items() if path.endswith(".tar"))

    whole = NUM_SHARDS * SHARD_SIZE * 20_000
    assert all(fetched(1, rank) >= whole for rank in range(2))
    assert all(whole / 2 <= fetched(2, rank) < whole * 0.55 for rank in range(2))


def test_what_cannot_be_divided_is_refused(remote_set: Path):
    reader = ShardReader(ShardSet.open(remote_set), "train")
    loader = ShardLoader(reader, batch_size=8, nodes=2, decode=lambda sample: np.zeros(1))
    next(iter(loader))
    saved = loader.state_dict()
    assert saved["nodes"] == 2
    assert "nodes" not in ShardLoader(reader, batch_size=8).state_dict()
    ShardLoader(reader, batch_size=4, nodes=2).load_state_dict(saved)
    with pytest.raises(ShardError, match="its nodes is 2 and the loader's is 1"):
        ShardLoader(reader, batch_size=8).load_state_dict(saved)
    with pytest.raises(ShardError, match="nodes 3: a global batch of 8 samples"):
        ShardLoader(reader, batch_size=8, nodes=3)
    with pytest.raises(ShardError, match="nodes 0: give at least 1"):
        ShardLoader(reader, batch_size=8, nodes=0)
    with pytest.raises(ShardError, match=r"nodes 2 and balance 0\.5"):
        ShardLoader(reader, batch_size=8, nodes=2, balance=0.5)
