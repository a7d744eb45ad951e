"""Recordings of a set, and the order in which lanes read them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make_sized_set, upload

from shards import (
    PADDING,
    Sample,
    ShardError,
    ShardReader,
    ShardSet,
    encode_npy,
    epoch_key,
    write_shard,
)
from shards import publish as publish_set
from shards.lanes import LaneOrder, Lanes
from shards.loader import ShardLoader
from shards.recordings import Recordings

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6]
SHARDS = [[0, 1, 2], [3], [4, 5, 6, 7]]


def make_recordings(
    final: Path,
    lengths: Sequence[int] = LENGTHS,
    shards: Sequence[Sequence[int]] = SHARDS,
    without: Sequence[tuple[int, int]] = (),
) -> ShardReader:
    """A reader of a set with these recordings; sample n holds its recording and its part."""
    staging = final.with_name(f"{final.name}.staging")
    for number, recordings in enumerate(shards):
        samples = [
            sample_of(recording, part)
            for recording in recordings
            for part in range(lengths[recording])
            if (recording, part) not in without
        ]
        write_shard(staging, number, "train", samples)
    publish_set(
        staging, final, numbers=range(len(shards)), config={}, input_digest="", classes=("a", "b")
    )
    return ShardReader(ShardSet.open(final), "train")


def sample_of(recording: int, part: int) -> Sample:
    key = f"{recording:024x}" + (f"-{part:05d}" if part else "")
    members = {"part.npy": encode_npy(np.array([recording, part], np.int32))}
    return Sample(key, members, recording % 2, f"train/{recording}.wav", "0" * 64)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return make_recordings(tmp_path_factory.mktemp("lanes") / "set")


def table_of(order: LaneOrder, lanes: Lanes) -> np.ndarray:
    """The samples of each lane: [lanes, parts of the epoch]."""
    found = order(np.arange(order.num_samples, dtype=np.int64))
    width = lanes.count // lanes.groups
    by_part = found.reshape(-1, lanes.groups, lanes.parts, width).transpose(1, 3, 0, 2)
    return by_part.reshape(lanes.count, -1)


recordings_of = st.lists(st.integers(1, 12), max_size=30)
shapes = st.builds(
    lambda groups, width, parts: Lanes(groups * width, parts, groups),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
)


@settings(max_examples=200, deadline=None)
@given(recordings_of, shapes, st.none() | st.integers(0, 9))
def test_lanes_read_whole_recordings_one_after_another(lengths, lanes, seed):
    sizes = np.array(lengths, np.int64)
    recordings = Recordings(np.cumsum(sizes) - sizes, sizes)
    key = None if seed is None else epoch_key("0" * 64, "train", seed, 0)
    table = table_of(LaneOrder(recordings, key, lanes), lanes)
    there = table[table != PADDING]
    assert sorted(there.tolist()) == list(range(sum(lengths)))  # each part once
    for lane in table.tolist():
        parts = [number for number in lane if number != PADDING]
        assert lane == parts + [PADDING] * (len(lane) - len(parts))  # holes at the end only
        while parts:
            first = np.flatnonzero(recordings.firsts == parts[0])
            assert len(first) == 1
            whole = range(parts[0], parts[0] + lengths[first[0]])
            assert parts[: len(whole)] == list(whole)
            parts = parts[len(whole) :]
    # No lane is longer than the longest recording, or than its fair share and one recording more.
    fair = -(-sum(lengths) // lanes.count) + max(lengths, default=0)
    assert table.shape[1] <= -(-fair // lanes.parts) * lanes.parts


@given(recordings_of, shapes, st.integers(0, 3))
def test_groups_divide_the_lanes_and_change_nothing_else(lengths, lanes, seed):
    sizes = np.array(lengths, np.int64)
    recordings = Recordings(np.cumsum(sizes) - sizes, sizes)
    key = epoch_key("0" * 64, "train", seed, 0)
    together = Lanes(lanes.count, lanes.parts)
    expected = table_of(LaneOrder(recordings, key, together), together)
    assert np.array_equal(table_of(LaneOrder(recordings, key, lanes), lanes), expected)


def test_epochs_have_other_orders_and_as_many_steps():
    sizes = np.array([3, 5, 5, 5, 2, 7, 1, 3] * 4, np.int64)
    recordings = Recordings(np.cumsum(sizes) - sizes, sizes)
    lanes = Lanes(4, 2)
    tables = [
        table_of(LaneOrder(recordings, epoch_key("0" * 64, "train", 0, epoch), lanes), lanes)
        for epoch in range(3)
    ]
    assert len({table.shape for table in tables}) == 1
    assert len({table.tobytes() for table in tables}) == 3


def test_recordings_are_told_by_their_keys(reader):
    found = Recordings.of(reader)
    assert found.lengths.tolist() == LENGTHS
    numbers = np.arange(-1, sum(LENGTHS))
    firsts = np.cumsum([0, *LENGTHS[:-1]])
    assert np.array_equal(found.are_first(numbers), np.isin(numbers, firsts))
    assert np.array_equal(found.are_last(numbers), np.isin(numbers, firsts + LENGTHS - 1))


def test_a_part_that_is_missing_leaves_no_gap(tmp_path):
    reader = make_recordings(tmp_path / "set", without=[(2, 0), (4, 2), (7, 5)])
    found = Recordings.of(reader)
    assert found.lengths.tolist() == [3, 1, 3, 1, 4, 9, 2, 5]


def test_sets_without_numbered_parts_and_remote_ones_are_refused(tmp_path, reader):
    other = make_sized_set(tmp_path / "other", [3])
    with pytest.raises(ShardError, match="key 'sample-00000' does not number a part"):
        Recordings.of(other)
    location = reader.shard_set.location.folder
    assert location is not None
    remote = ShardReader(ShardSet.open(upload(location)), "train")
    with pytest.raises(ShardError, match="local sets only"):
        Recordings.of(remote)


def test_parts_out_of_order_are_refused(tmp_path):
    write_shard(tmp_path / "staging", 0, "train", [sample_of(3, part) for part in (0, 2, 1)])
    publish_set(
        tmp_path / "staging", tmp_path / "set", numbers=[0], config={}, input_digest="",
        classes=("a", "b"),
    )  # fmt: skip
    with pytest.raises(ShardError, match=r"part 1 of recording 0+3 comes after its part 2"):
        Recordings.of(ShardReader(ShardSet.open(tmp_path / "set"), "train"))


def lanes_of(
    reader: ShardReader, lanes: Lanes, world_size: int, state: dict | None = None,
    steps: int | None = None, **options,
) -> tuple[list[list[tuple[int, int]]], dict]:  # fmt: skip
    """What each lane reads of (recording, part), from the samples' contents, and the state then."""
    width = lanes.count // lanes.groups
    loaders = [
        ShardLoader(reader, batch_size=width // world_size, rank=rank, world_size=world_size,
                    seed=1, lanes=lanes, **options)
        for rank in range(world_size)
    ]  # fmt: skip
    if state is not None:
        for loader in loaders:
            loader.load_state_dict(state)
    table: list[list[tuple[int, int]]] = [[] for _ in range(lanes.count)]
    batches = steps and steps * lanes.parts * lanes.groups
    iterators = [iter(loader) for loader in loaders]
    turn = 0
    while batches is None or turn < batches:
        parts = [next(iterator, None) for iterator in iterators]
        if parts[0] is None:
            break
        group = turn // lanes.parts % lanes.groups
        for rank, batch in enumerate(parts):
            for row, number in enumerate(batch.numbers.tolist()):
                if number != PADDING:
                    lane = group * width + rank * len(batch.numbers) + row
                    table[lane].append(tuple(batch.fields["part.npy"][row].tolist()))
        turn += 1
    return table, loaders[0].state_dict()


def test_the_loader_gives_each_lane_its_recordings_at_any_world_size(reader):
    whole, _ = lanes_of(reader, Lanes(4, 2), 1)
    for lane in whole:
        recordings = list(dict.fromkeys(recording for recording, _ in lane))
        assert lane == [(each, part) for each in recordings for part in range(LENGTHS[each])]
    for world_size, groups in ((2, 1), (4, 1), (1, 2), (2, 2), (1, 4)):
        assert lanes_of(reader, Lanes(4, 2, groups), world_size)[0] == whole


def test_the_rest_of_an_epoch_is_read_at_another_world_size(reader):
    whole, _ = lanes_of(reader, Lanes(4, 2), 2)
    start, state = lanes_of(reader, Lanes(4, 2), 2, steps=2)
    rest, _ = lanes_of(reader, Lanes(4, 2, 2), 1, state=state)
    assert state["samples"] == 2 * 4 * 2
    assert [one + other for one, other in zip(start, rest, strict=True)] == whole


def test_states_of_other_streams_and_positions_within_a_step_are_refused(reader):
    loader = ShardLoader(reader, batch_size=4, lanes=Lanes(4, 2))
    state = loader.state_dict()
    with pytest.raises(ShardError, match="its lanes is"):
        ShardLoader(reader, batch_size=4, lanes=Lanes(4, 1)).load_state_dict(state)
    with pytest.raises(ShardError, match="its lanes is"):
        ShardLoader(reader, batch_size=4).load_state_dict(state)
    next(iter(loader))
    with pytest.raises(ShardError, match="within a step of streams"):
        loader.load_state_dict(loader.state_dict())
    with pytest.raises(ShardError, match="2 ranks with batches of 3 have 6 lanes"):
        ShardLoader(reader, batch_size=3, world_size=2, lanes=Lanes(4, 1))
    assert "lanes" not in ShardLoader(reader, batch_size=4).state_dict()
