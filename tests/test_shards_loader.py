"""Batches that resume exactly: at any world size, any number of workers, anywhere in an epoch."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import SPEC, UNEVEN, halves, make_set, make_sized_set
from torch.utils.data import DataLoader

from shards import PADDING, ShardError, ShardReader, ShardSet, decode_npy
from shards.collate import collate
from shards.loader import ShardBatch, ShardLoader

TOTAL = sum(UNEVEN)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """43 samples in shards of uneven sizes; each holds its number."""
    return make_sized_set(tmp_path_factory.mktemp("loader") / "set", UNEVEN)


def make_loaders(reader: ShardReader, world_size: int, batch_size: int, **options) -> list:
    """A loader for each rank."""
    return [
        ShardLoader(reader, batch_size=batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def numbers_of(batch: ShardBatch) -> list[int]:
    """The samples of a batch, read from their content; the loader's word is checked against it."""
    read = batch.fields["number.npy"][:, 0]
    for_padding = torch.where(batch.numbers == PADDING, 0, batch.numbers)
    assert torch.equal(read.long(), for_padding)
    return batch.numbers.tolist()


def advance(loaders: list, steps: int | None = None) -> list[list[int]]:
    """Global batches of the next steps of all ranks, or of the rest of the epoch."""
    batches = []
    iterators = [iter(loader) for loader in loaders]
    while steps is None or len(batches) < steps:
        parts = [next(iterator, None) for iterator in iterators]
        if parts[0] is None:
            assert parts == [None] * len(parts)  # every rank has the same number of steps
            break
        batches.append([number for part in parts for number in numbers_of(part)])
    return batches


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch if number != PADDING]


orders = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "shuffle": st.booleans(),
        "window": st.none() | st.integers(1, 4) | st.just("auto"),
        "drop_last": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 2), st.data(), orders)
def test_with_the_same_global_batch_the_rest_is_that_of_an_uninterrupted_run(
    reader: ShardReader, before: int, after: int, scale: int, data: st.DataObject, order: dict
) -> None:
    global_batch_size = int(np.lcm(before, after)) * scale
    whole = make_loaders(reader, before, global_batch_size // before, **order)
    epochs = [advance(whole) for _ in range(3)]
    stop_epoch = data.draw(st.integers(0, 2))
    stop_step = data.draw(st.integers(0, len(epochs[stop_epoch])))

    stopped = make_loaders(reader, before, global_batch_size // before, **order)
    for _ in range(stop_epoch):
        advance(stopped)
    done = advance(stopped, stop_step)
    states = [json.loads(json.dumps(loader.state_dict())) for loader in stopped]
    assert states == states[:1] * before  # any rank's will do

    resumed = make_loaders(reader, after, global_batch_size // after, **order)
    for loader in resumed:
        loader.load_state_dict(states[0])
    assert done + advance(resumed) == epochs[stop_epoch]
    for epoch in range(stop_epoch + 1, 3):
        assert advance(resumed) == epochs[epoch]


@settings(max_examples=60, deadline=None)
@given(st.data(), orders)
def test_with_any_other_global_batch_no_sample_is_skipped_or_repeated(
    reader: ShardReader, data: st.DataObject, order: dict
) -> None:
    order = order | {"drop_last": False}
    whole = flat(advance(make_loaders(reader, 1, TOTAL, **order)))
    read: list[int] = []
    state = None
    for _ in range(data.draw(st.integers(1, 4))):
        loaders = make_loaders(
            reader, data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5)), **order
        )
        for loader in loaders:
            if state:
                loader.load_state_dict(state)
        read += flat(advance(loaders, data.draw(st.integers(0, 4))))
        state = loaders[-1].state_dict()
        if state["epoch"]:
            break
        assert state["samples"] == len(read)
    else:
        read += flat(advance(loaders))
    assert read == whole
    assert sorted(read) == list(range(TOTAL))


def test_an_epoch_follows_another_and_set_epoch_keeps_a_place_within_its_own(
    reader: ShardReader,
) -> None:
    loader = ShardLoader(reader, batch_size=10)
    first, second = advance([loader]), advance([loader])
    assert first != second and loader.epoch == 2
    loader.set_epoch(0)
    assert advance([loader], 2) == first[:2] and len(loader) == 3
    loader.set_epoch(0)
    assert advance([loader]) == first[2:]
    loader.seek(1, 20)
    assert advance([loader]) == second[2:]


def test_dropping_gives_whole_batches_and_padding_gives_all_samples(reader: ShardReader) -> None:
    dropped = advance(make_loaders(reader, 4, 3, drop_last=True))
    padded = advance(make_loaders(reader, 4, 3))
    assert padded[:3] == dropped and len(padded) == 4
    assert sorted(flat(padded)) == list(range(TOTAL))
    assert padded[3].count(PADDING) == 4 * 12 - TOTAL


def test_a_rank_of_padding_has_the_same_fields_and_no_weight(reader: ShardReader) -> None:
    last = [list(loader)[-1] for loader in make_loaders(reader, 8, 4, pad_to={"sound.npy": 6})]
    assert [int(batch.weights.sum()) for batch in last] == [4, 4, 3, 0, 0, 0, 0, 0]
    for batch in last:
        assert {name: list(field.shape) for name, field in batch.fields.items()} == {
            "number.npy": [4, 2],
            "sound.npy": [4, 6],
        }
        assert batch.fields["sound.npy"].dtype == torch.int16
        empty = batch.weights == 0
        assert torch.equal(empty, batch.numbers == PADDING)
        assert (batch.targets[empty] == -1).all()
        assert not batch.fields["number.npy"][empty].any()
        assert not batch.lengths["sound.npy"][empty].any()


def test_shorter_samples_are_filled_up_with_zeros(reader: ShardReader) -> None:
    (batch,) = ShardLoader(reader, batch_size=TOTAL, shuffle=False)
    numbers = torch.arange(TOTAL)
    assert torch.equal(batch.lengths["sound.npy"], numbers % 5 + 1)
    real = torch.arange(5) < batch.lengths["sound.npy"][:, None]
    assert torch.equal(batch.fields["sound.npy"], (real * numbers[:, None]).to(torch.int16))
    assert torch.equal(batch.targets, numbers % 3) and not batch.bad
    with pytest.raises(ShardError, match=r"'sound\.npy': a sample has 5 entries and pad_to 4"):
        next(iter(ShardLoader(reader, batch_size=TOTAL, pad_to={"sound.npy": 4})))


def test_a_batch_is_written_once_into_memory_made_for_it(reader: ShardReader) -> None:
    made: dict[str, np.ndarray] = {}

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        assert name not in made
        made[name] = np.empty(shape, dtype)
        return made[name]

    samples = reader.read_many(np.array([6, 2]))
    arrays = [{"number": decode_npy(sample.members["number.npy"])} for sample in samples]
    for sample, array in zip(samples, arrays, strict=True):
        content = np.frombuffer(sample.members["number.npy"], np.uint8)
        assert np.shares_memory(array["number"], content)  # the decoder copied nothing
    lengths = collate([arrays[0], None, arrays[1]], {}, allocate)
    assert made["number"].tolist() == [[6, -6], [0, 0], [2, -2]]
    assert lengths["number"].tolist() == [2, 0, 2]


def test_memory_is_used_again_only_when_no_one_holds_it(reader: ShardReader) -> None:
    loader = ShardLoader(reader, batch_size=4)
    held = [(batch.numbers, batch.fields["number.npy"][1:]) for batch in loader]
    for numbers, part in held:  # views of the batches' tensors
        assert torch.equal(part[:, 0].long(), numbers[1:].clamp(min=0))
    del held, numbers, part
    addresses = {batch.fields["number.npy"].data_ptr() for batch in loader}
    assert len(addresses) <= 2  # that of this batch and that of the one before


def test_the_window_of_a_state_is_taken_over_unless_another_was_asked_for(
    reader: ShardReader,
) -> None:
    first = ShardLoader(reader, batch_size=4, seed=3, window=2)
    whole = advance([first], 1) + advance([first])
    state = ShardLoader(reader, batch_size=4, seed=3, window=2).state_dict() | {"samples": 4}
    (loader := ShardLoader(reader, batch_size=4, seed=3)).load_state_dict(state)
    assert advance([loader]) == whole[1:]


# --- workers ---


def same(one: ShardBatch, other: ShardBatch) -> None:
    assert one.fields.keys() == other.fields.keys()
    for name in one.fields:
        assert torch.equal(one.fields[name], other.fields[name])
        assert torch.equal(one.lengths[name], other.lengths[name])
    for name in ("targets", "weights", "numbers"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.bad, one.samples) == (other.bad, other.samples)


def test_workers_give_the_same_batches_and_the_state_counts_those_handed_out(
    reader: ShardReader,
) -> None:
    options: dict[str, Any] = {
        "batch_size": 4, "rank": 1, "world_size": 2, "decode": halves, "skip_bad": True,
    }  # fmt: skip
    alone = ShardLoader(reader, **options)
    loader = ShardLoader(reader, num_workers=2, prefetch=4, **options)
    expected = [*alone, *alone]
    read = []
    for batch in loader:
        read.append(batch)
        assert loader.state_dict()["samples"] == min(8 * len(read), TOTAL)
        if len(read) == 2:
            break  # workers are ahead by now, and their batches are of no account
    state = loader.state_dict()
    assert (state["epoch"], state["samples"]) == (0, 16)
    read += [*loader, *loader]
    for one, other in zip(read, expected, strict=True):
        same(one, other)
    assert read[0].fields["half"].is_shared()  # a worker wrote where this process reads
    assert any(batch.bad == (("raw/7.wav", "a bad one"),) for batch in read)

    loader.load_state_dict(state)
    for one, other in zip(loader, expected[2:6], strict=True):
        same(one, other)


@pytest.mark.parametrize("kind", ["stream", "batches"])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_plain_data_loader_gives_the_batches_in_order(
    reader: ShardReader, kind: str, num_workers: int
) -> None:
    loader = ShardLoader(reader, batch_size=3, rank=0, world_size=2, seed=4, window=2)
    expected = list(loader)
    loader.set_epoch(0)
    plain = DataLoader(
        getattr(loader, kind)(),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=multiprocessing.get_context("fork") if num_workers else None,
    )
    read = list(plain)
    for one, other in zip(read, expected, strict=True):
        same(one, other)
    loader.load_state_dict(loader.state_dict(after=read[3]))
    for one, other in zip(getattr(loader, kind)(), expected[4:], strict=True):
        same(one, other)


def test_batches_can_be_asked_for_by_their_number(reader: ShardReader) -> None:
    batches = ShardLoader(reader, batch_size=10).batches()
    same(batches[3], list(ShardLoader(reader, batch_size=10))[3])
    for outside in (-1, len(batches)):
        with pytest.raises(IndexError):
            batches[outside]


def test_a_position_table_is_handed_over_once(tmp_path: Path, reader: ShardReader) -> None:
    make_set(tmp_path / "set")
    shard_set = ShardSet.open(tmp_path / "set")
    loader = ShardLoader(ShardReader(shard_set, "train"), batch_size=2)
    np.testing.assert_array_equal(loader.position_table(), shard_set.position_table(SPEC))
    assert loader.position_table(SPEC) is loader.position_table()
    with pytest.raises(ShardError, match="has 0 position tables"):
        ShardLoader(reader, batch_size=2).position_table()


def test_workers_that_find_another_set_say_so(tmp_path: Path) -> None:
    reader = make_sized_set(tmp_path / "set", [4, 4])
    loader = ShardLoader(reader, batch_size=2, num_workers=1)
    make_sized_set(tmp_path / "other", [5, 4])
    (tmp_path / "set").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "set")
    with pytest.raises(ShardError, match="replaced by the set"):
        list(loader)
    (tmp_path / "set").rename(tmp_path / "other")
    (tmp_path / "old").rename(tmp_path / "set")
    assert len(list(loader)) == 4
