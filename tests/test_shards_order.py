"""The order of samples: a permutation, split evenly over ranks, resumable at any world size."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make_set, make_sized_set, upload, write_synthetic

from shards import (
    PADDING,
    Permutation,
    ShardError,
    ShardReader,
    ShardSet,
    epoch_key,
    epoch_positions,
    num_steps,
)
from shards.epoch import REMOTE_WINDOW
from shards.order import EpochOrder


@given(st.integers(1, 5000), st.binary(max_size=8))
def test_every_position_goes_to_a_place_of_its_own(n: int, key: bytes) -> None:
    assert sorted(Permutation(n, key)(np.arange(n))) == list(range(n))


@given(st.integers(1, 5000), st.data())
def test_a_position_can_be_asked_for_alone(n: int, data: st.DataObject) -> None:
    permutation = Permutation(n, b"key")
    whole = permutation(np.arange(n))
    some = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), dtype=np.int64)
    np.testing.assert_array_equal(permutation(some), whole[some])


def test_a_billion_samples_take_no_memory() -> None:
    n = 10**9 + 7
    ends = np.array([0, 1, n - 2, n - 1])
    values = Permutation(n, b"key")(ends)
    assert len(set(values.tolist())) == 4 and values.min() >= 0 and values.max() < n


def test_the_order_looks_random() -> None:
    n = 4096
    values = Permutation(n, b"key")(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), values)[0, 1]) < 0.05
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05
    assert np.count_nonzero(values == np.arange(n)) < 10  # a random permutation has 1 on average
    first = [int(Permutation(7, bytes([key]))(np.array([0]))[0]) for key in range(250)]
    assert min(np.bincount(first, minlength=7)) > 15


def test_every_part_of_the_key_changes_the_order() -> None:
    keys = [epoch_key(*key) for key in [("d", "train", 1, 2), ("e", "train", 1, 2)]]
    keys += [epoch_key("d", split, 1, 2) for split in ("val", "trai")]
    keys += [epoch_key("d", "train", *numbers) for numbers in [(1, 3), (2, 2), (12, 0), (2, 1)]]
    orders = {tuple(Permutation(100, key)(np.arange(100)).tolist()) for key in keys}
    assert len(orders) == len(keys)
    assert epoch_key("d", "train", 1, 2) == keys[0]


def test_the_order_is_part_of_the_format() -> None:
    key = epoch_key("0" * 64, "train", 0, 0)
    assert Permutation(10, key)(np.arange(10)).tolist() == [7, 3, 5, 0, 6, 1, 2, 4, 9, 8]


def test_positions_beyond_the_end_are_refused() -> None:
    for outside in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            Permutation(10, b"key")(np.array([outside]))
    assert Permutation(0, b"key")(np.array([], dtype=np.int64)).size == 0


# --- windows of shards ---

shard_sizes = st.lists(st.integers(0, 40), max_size=30).map(lambda n: np.array(n, dtype=np.int64))


def listed(order: EpochOrder) -> list[int]:
    return order(np.arange(order.num_samples)).tolist()


@settings(deadline=None)
@given(shard_sizes, st.none() | st.integers(1, 40), st.none() | st.binary(max_size=64))
def test_every_sample_comes_once_whatever_the_shards(
    sizes: np.ndarray, window: int | None, key: bytes | None
) -> None:
    order = EpochOrder(sizes, key, window)
    assert sorted(listed(order)) == list(range(int(sizes.sum())))
    if key is None:
        assert listed(order) == sorted(listed(order))


@settings(deadline=None)
@given(shard_sizes, st.integers(1, 8), st.none() | st.binary(max_size=64))
def test_a_window_reads_its_own_shards_and_no_others(
    sizes: np.ndarray, window: int, key: bytes | None
) -> None:
    order = EpochOrder(sizes, key, window)
    ends = np.cumsum(sizes)
    shards_at = np.searchsorted(ends, listed(order), side="right")
    windows_at = [order.window_at(position) for position in range(order.num_samples)]
    assert windows_at == sorted(windows_at)
    for number in set(windows_at):
        read = shards_at[np.array(windows_at) == number]
        assert set(read.tolist()) == {s for s in order.shards_in(number) if sizes[s]}
    cut = [order.shards_in(number) for number in range(-(-len(sizes) // window))]
    assert sorted(shard for shards in cut for shard in shards) == list(range(len(sizes)))
    assert all(len(shards) == window for shards in cut[:-1])
    assert order.shards_in(len(cut)) == []


@settings(deadline=None)
@given(shard_sizes.filter(lambda sizes: sizes.sum() > 0), st.integers(1, 8), st.data())
def test_a_position_in_a_window_can_be_asked_for_alone(
    sizes: np.ndarray, window: int, data: st.DataObject
) -> None:
    whole = listed(EpochOrder(sizes, b"key", window))
    some = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=20))
    order = EpochOrder(sizes, b"key", window)
    assert order(np.array(some, dtype=np.int64)).tolist() == [whole[index] for index in some]
    for outside in (-1, len(whole)):
        with pytest.raises(ValueError, match="outside"):
            order(np.array([outside]))


def test_a_window_mixes_its_shards_and_epochs_mix_the_windows() -> None:
    sizes = np.full(64, 100)
    orders = [EpochOrder(sizes, bytes([key]), 8) for key in range(20)]
    first = np.array([np.array(listed(order)[:800]) // 100 for order in orders])
    for shards in first:
        assert len(set(shards[:100])) == 8  # all shards of the window from the beginning
    assert len({tuple(sorted(set(shards))) for shards in first.tolist()}) == 20


def test_the_order_by_windows_is_part_of_the_format() -> None:
    order = EpochOrder(np.array([3, 0, 4, 1, 5]), epoch_key("0" * 64, "train", 0, 0, 2), 2)
    assert listed(order) == [9, 11, 10, 8, 12, 6, 7, 3, 4, 5, 1, 2, 0]


def test_a_billion_samples_in_a_hundred_thousand_shards_start_at_once(tmp_path: Path) -> None:
    write_synthetic(tmp_path, 100_000, 10_000)
    reader = ShardReader(ShardSet.open(tmp_path), "train")
    assert len(reader) == 10**9
    for window in (None, 16):
        begun = time.perf_counter()
        where = {"seed": 0, "epoch": 3, "rank": 7, "world_size": 8, "batch_size": 64}
        late = next(epoch_positions(reader, **where, window=window, start=10**9 - 600))
        assert time.perf_counter() - begun < 1
        assert late[-1] >= 0 and len(set(late.tolist())) == 64


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Nine samples of the train split."""
    path = tmp_path_factory.mktemp("order") / "set"
    make_set(path)
    return ShardReader(ShardSet.open(path), "train")


def ranks_of(reader: ShardReader, world_size: int, batch_size: int, **options) -> list[list]:
    """For each rank its batches."""
    return [
        list(
            epoch_positions(
                reader, rank=rank, world_size=world_size, batch_size=batch_size, **options
            )
        )
        for rank in range(world_size)
    ]


def global_batches(ranks: list[list]) -> list[list[int]]:
    """For each step what all ranks read together, after a check that they have the same steps."""
    return [np.concatenate(step).tolist() for step in zip(*ranks, strict=True)]


epochs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 5),
        "epoch": st.integers(0, 5),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
        "window": st.none() | st.integers(1, 3) | st.just("auto"),
    }
)


@settings(max_examples=100, deadline=None)
@given(world_size=st.integers(1, 8), batch_size=st.integers(1, 4), epoch=epochs)
def test_ranks_together_read_what_one_process_reads(
    reader: ShardReader, world_size: int, batch_size: int, epoch: dict
) -> None:
    together = global_batches(ranks_of(reader, world_size, batch_size, **epoch))
    alone = global_batches(ranks_of(reader, 1, world_size * batch_size, **epoch))
    assert together == alone
    assert len(together) == num_steps(
        len(reader), world_size * batch_size, drop_last=epoch["drop_last"]
    )
    read = [index for batch in together for index in batch if index != PADDING]
    assert len(set(read)) == len(read)
    if epoch["drop_last"]:
        assert all(PADDING not in batch for batch in together)
    else:
        assert sorted(read) == list(range(len(reader)))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(1, 8), st.integers(0, 4), epochs)
def test_a_run_resumes_at_any_world_size(
    reader: ShardReader, data: st.DataObject, before: int, after: int, steps: int, epoch: dict
) -> None:
    size = data.draw(st.integers(1, 12))  # the ranks need not divide it

    def batches(ranks: int, start: int = 0) -> list[list[int]]:
        own = ranks_of(reader, ranks, -(-size // ranks), start=start, global_batch=size, **epoch)
        together = global_batches(own)
        assert all(set(batch[size:]) <= {PADDING} for batch in together)
        return [batch[:size] for batch in together]

    assert batches(after, start=steps * size) == batches(before)[steps:]


def test_epochs_and_seeds_differ_and_repeat(reader: ShardReader) -> None:
    def order(seed: int, epoch: int) -> list:
        return global_batches(ranks_of(reader, 1, 9, seed=seed, epoch=epoch))

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_nonsense_is_refused(reader: ShardReader) -> None:
    good = {"seed": 0, "epoch": 0, "rank": 0, "world_size": 2, "batch_size": 1}
    nonsense = [{"rank": 2}, {"rank": -1}, {"batch_size": 0}, {"start": -1}]
    nonsense += [{"global_batch": 0}, {"global_batch": 3}]
    for bad in nonsense + [{"window": window} for window in (0, -1, True, "all")]:
        with pytest.raises(ShardError):
            epoch_positions(reader, **(good | bad))


def test_the_epoch_of_a_set_is_the_digests(reader: ShardReader, tmp_path: Path) -> None:
    make_set(tmp_path / "other", seed=1)
    other = ShardReader(ShardSet.open(tmp_path / "other"), "train")
    orders = [global_batches(ranks_of(r, 1, 9, seed=0, epoch=0)) for r in (reader, other)]
    assert orders[0] != orders[1]


def test_local_sets_are_shuffled_whole_and_others_by_windows(tmp_path: Path) -> None:
    local = make_sized_set(tmp_path / "set", [3] * (REMOTE_WINDOW + 4))
    remote = ShardReader(ShardSet.open(upload(tmp_path / "set")), "train")

    def order(reader: ShardReader, **options) -> list:
        return global_batches(ranks_of(reader, 1, 7, seed=0, epoch=0, **options))

    assert order(local) == order(local, window=None) == order(remote, window=None)
    assert order(remote) == order(remote, window=REMOTE_WINDOW) == order(local, window=16)
    assert order(local) != order(remote)
