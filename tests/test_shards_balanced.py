"""The balanced order: how often classes and samples come, what a window reads, and resuming."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make_set, upload

from shards import ShardError, ShardReader, ShardSet, epoch_key
from shards.balanced_order import BalancedOrder, class_draws
from shards.loader import ShardLoader


@st.composite
def sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of shards, and the class of each sample; some classes are rare or absent."""
    sizes = np.array(draw(st.lists(st.integers(0, 30), max_size=12)), dtype=np.int64)
    shares = np.array(draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))) + 1e-9
    chooser = np.random.default_rng(draw(st.integers(0, 99)))
    targets = chooser.choice(len(shares), int(sizes.sum()), p=shares / shares.sum())
    if draw(st.booleans()):
        targets = np.sort(targets)  # shards of one class each
    return sizes, targets.astype(np.int32)


balances = st.sampled_from([0.25, 0.5, 1.0])
windows = st.none() | st.integers(1, 6)


def listed(order: BalancedOrder) -> np.ndarray:
    return order(np.arange(order.num_samples))


@settings(deadline=None)
@given(sets(), windows, balances, st.binary(min_size=1, max_size=64))
def test_classes_come_by_their_draws_and_samples_equally_often_within_their_window(
    samples: tuple[np.ndarray, np.ndarray], window: int | None, balance: float, key: bytes
) -> None:
    sizes, targets = samples
    order = BalancedOrder(sizes, targets, key, window, balance)
    numbers = listed(order)
    counts = np.bincount(targets, minlength=1)
    exact = np.where(counts > 0, np.maximum(counts, 1) ** (1 - balance), 0)
    exact = exact / max(exact.sum(), 1e-9) * len(targets)
    drawn = np.bincount(targets[numbers], minlength=len(counts))
    assert len(numbers) == len(targets) and (np.abs(drawn - exact) < 1 + 1e-3).all()
    of_window = np.zeros(len(numbers), int)
    if window is not None:
        of_window = np.array([order.window_at(place) for place in range(len(numbers))], int)
        shards = np.searchsorted(np.cumsum(sizes), numbers, side="right")
        for number in set(of_window.tolist()):
            assert set(shards[of_window == number].tolist()) <= set(order.shards_in(number))
        assert (np.diff(of_window) >= 0).all()
    for number in set(of_window.tolist()):
        for name in range(len(counts)):
            own = numbers[(of_window == number) & (targets[numbers] == name)]
            held = targets == name
            if window is not None:
                mine = [shard in order.shards_in(number) for shard in range(len(sizes))]
                held &= np.repeat(mine, sizes)
            times = np.bincount(own, minlength=len(targets))[held]
            assert times.size == 0 or times.max() - times.min() <= 1


@settings(deadline=None)
@given(sets().filter(lambda s: s[0].sum() > 0), windows, st.data())
def test_a_position_can_be_asked_for_alone(
    samples: tuple[np.ndarray, np.ndarray], window: int | None, data: st.DataObject
) -> None:
    order = BalancedOrder(*samples, b"key", window, 1.0)
    whole = listed(order).tolist()
    some = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=20))
    again = BalancedOrder(*samples, b"key", window, 1.0)
    assert again(np.array(some, dtype=np.int64)).tolist() == [whole[index] for index in some]
    with pytest.raises(ValueError, match="outside"):
        order(np.array([len(whole)]))


def test_draws_lie_between_the_counts_and_equal_parts() -> None:
    counts = np.array([900, 90, 10, 0])
    assert class_draws(counts, 1.0).tolist() == [334, 333, 333, 0]
    halves = class_draws(counts, 0.5)
    assert halves.sum() == 1000 and halves[0] / halves[2] == pytest.approx(90**0.5, rel=0.02)


def test_the_balanced_order_is_part_of_the_format() -> None:
    sizes, targets = np.array([3, 0, 4, 1, 5]), np.array([0] * 9 + [1] * 3 + [2])
    key = epoch_key("0" * 64, "train", 0, 0, None, 1.0)
    assert listed(BalancedOrder(sizes, targets, key, None, 1.0)).tolist() == [
        10, 4, 11, 6, 11, 2, 8, 12, 5, 12, 12, 12, 9,
    ]  # fmt: skip
    key = epoch_key("0" * 64, "train", 0, 0, 2, 0.5)
    assert listed(BalancedOrder(sizes, targets, key, 2, 0.5)).tolist() == [
        9, 6, 11, 12, 5, 12, 10, 8, 3, 9, 2, 1, 7,
    ]  # fmt: skip


def test_samples_of_a_class_are_mixed_and_change_with_the_epoch() -> None:
    sizes, targets = np.full(10, 100), np.array([0] * 950 + [1] * 50)
    orders = [listed(BalancedOrder(sizes, targets, bytes([key]), None, 1.0)) for key in range(20)]
    seen = {tuple(sorted(order[targets[order] == 0].tolist())) for order in orders}
    assert len(seen) == 20
    for order in orders:
        assert 30 <= targets[order[:100]].sum() <= 70  # from the beginning


def test_a_sample_without_a_class_is_refused() -> None:
    with pytest.raises(ShardError, match="1 of 3 samples have no class"):
        BalancedOrder(np.array([3]), np.array([0, -1, 1]), b"key", None, 1.0)


# --- of a set ---


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Nine samples of three classes in three shards."""
    path = tmp_path_factory.mktemp("balanced") / "set"
    make_set(path)
    return ShardReader(ShardSet.open(path), "train")


def batches_of(loader: ShardLoader) -> list[list[int]]:
    return [batch.numbers.tolist() for batch in loader]


def test_the_targets_of_a_split_are_those_of_its_samples(
    reader: ShardReader, tmp_path: Path
) -> None:
    expected = [reader.read(number).target for number in range(len(reader))]
    assert reader.targets().tolist() == expected
    make_set(tmp_path / "set")
    remote = ShardReader(ShardSet.open(upload(tmp_path / "set")), "train")
    assert remote.targets().tolist() == expected


@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_balanced_run_resumes_at_any_world_size(
    reader: ShardReader, window: int | None, world_size: int
) -> None:
    options: dict[str, Any] = {"seed": 3, "window": window, "balance": 1.0, "decode": lambda _: {}}
    whole = ShardLoader(reader, batch_size=4, **options)
    epochs = [batches_of(whole) for _ in range(2)]
    stopped = ShardLoader(reader, batch_size=4, **options)
    next(iter(stopped))
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["balance"] == 1.0
    ranks = [
        ShardLoader(reader, batch_size=4 // world_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.load_state_dict(state)
    for rest in (epochs[0][1:], epochs[1]):
        parts = [batches_of(rank) for rank in ranks]
        assert [[*itertools.chain(*step)] for step in zip(*parts, strict=True)] == rest
    assert epochs[0] != epochs[1]


def test_a_state_of_another_balance_is_refused_and_an_old_one_means_none(
    reader: ShardReader,
) -> None:
    plain = ShardLoader(reader, batch_size=4)
    balanced = ShardLoader(reader, batch_size=4, balance=0.5)
    assert "balance" not in plain.state_dict()
    for state, loader, words in (
        (plain.state_dict(), balanced, "its balance is 0.0 and the loader's is 0.5"),
        (balanced.state_dict(), plain, "its balance is 0.5 and the loader's is 0.0"),
        (plain.state_dict() | {"balance": 2}, plain, "balance 2 has another type, or is"),
    ):
        with pytest.raises(ShardError, match=words):
            loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"balance": 1.5}, "balance 1.5: give a number from 0 to 1"),
     ({"balance": -0.1}, "give a number from 0 to 1"),
     ({"balance": 1.0, "shuffle": False}, "samples are not shuffled")],
)  # fmt: skip
def test_nonsense_is_refused(reader: ShardReader, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ShardError, match=words):
        ShardLoader(reader, batch_size=4, **options)


def test_a_remote_set_draws_within_its_windows(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    local = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    remote = ShardReader(ShardSet.open(upload(tmp_path / "set")), "train")
    options: dict[str, Any] = {"batch_size": 4, "window": 1, "balance": 1.0}
    assert batches_of(ShardLoader(remote, **options)) == batches_of(ShardLoader(local, **options))
