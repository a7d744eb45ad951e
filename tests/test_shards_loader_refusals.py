"""What a loader refuses, and how it names what it cannot read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_sets import UNEVEN, halves, make_sized_set

from shards import RawSample, ShardError, ShardReader, ShardSet
from shards.loader import ShardLoader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """43 samples in shards of uneven sizes; each holds its number."""
    return make_sized_set(tmp_path_factory.mktemp("loader") / "set", UNEVEN)


@pytest.fixture
def state(reader: ShardReader) -> dict[str, Any]:
    loader = ShardLoader(reader, batch_size=4, seed=3, window=2)
    next(iter(loader))
    return loader.state_dict()


def test_a_state_is_small_and_says_what_it_belongs_to(
    reader: ShardReader, state: dict[str, Any]
) -> None:
    assert state == {
        "format": 1, "digest": reader.shard_set.digest, "split": "train", "seed": 3,
        "shuffle": True, "window": 2, "epoch": 0, "samples": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 4), ("shuffle", False), ("window", 3), ("window", None), ("split", "val"),
     ("digest", "e" * 64)],
)  # fmt: skip
def test_a_state_of_another_order_is_refused(
    reader: ShardReader, state: dict[str, Any], name: str, value: Any
) -> None:
    loader = ShardLoader(reader, batch_size=4, seed=3, window=2)
    with pytest.raises(ShardError, match=rf"its {name} is {value!r} and the loader's") as caught:
        loader.load_state_dict(state | {name: value})
    assert "\n" not in str(caught.value)
    assert loader.state_dict()["samples"] == 0


@pytest.mark.parametrize(
    "spoil",
    [{"format": 2}, {"samples": -1}, {"samples": 44}, {"samples": 4.0}, {"samples": True},
     {"epoch": None}, {"seed": "3"}, {"window": 0}, {"more": 1}, {"digest": 5}],
)  # fmt: skip
def test_what_is_no_state_is_refused(
    reader: ShardReader, state: dict[str, Any], spoil: dict[str, Any]
) -> None:
    loader = ShardLoader(reader, batch_size=4, seed=3, window=2)
    for wrong in (state | spoil, None, [state], {}):
        with pytest.raises(ShardError, match="loader state"):
            loader.load_state_dict(wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"rank": 2}, {"batch_size": 0}, {"window": 0}, {"num_workers": -1}, {"prefetch": 0}],
)
def test_nonsense_is_refused(reader: ShardReader, wrong: dict[str, Any]) -> None:
    with pytest.raises(ShardError):
        ShardLoader(reader, **({"batch_size": 1, "rank": 0, "world_size": 2} | wrong))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to pin memory for")
def test_pinning_without_a_gpu_is_refused(reader: ShardReader) -> None:
    with pytest.raises(ShardError, match="no GPU"):
        ShardLoader(reader, batch_size=1, pin_memory=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_pinned_batches_are_pinned(reader: ShardReader, num_workers: int) -> None:
    batch = next(iter(ShardLoader(reader, batch_size=4, pin_memory=True, num_workers=num_workers)))
    assert all(field.is_pinned() for field in batch.fields.values())


def test_two_iterations_at_once_are_refused(reader: ShardReader) -> None:
    loader = ShardLoader(reader, batch_size=4)
    one = iter(loader)
    assert next(one) and next(iter(loader))
    with pytest.raises(ShardError, match="one iterator at a time"):
        next(one)


def test_a_bad_sample_is_named_and_skipped_only_if_asked(tmp_path: Path) -> None:
    own = make_sized_set(tmp_path / "set", [4, 4, 4])
    with pytest.raises(ShardError, match=r"raw/7\.wav: cannot be decoded \(a bad one\)"):
        list(ShardLoader(own, batch_size=12, decode=halves))
    (tmp_path / "set" / "shard-00001.tar").unlink()
    own = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    with pytest.raises(ShardError, match=r"shard-00001\.tar: missing"):
        list(ShardLoader(own, batch_size=12))
    (batch,) = ShardLoader(own, batch_size=12, shuffle=False, skip_bad=True)
    assert batch.weights.tolist() == [1] * 4 + [0] * 4 + [1] * 4
    assert [source for source, _ in batch.bad] == [
        f"sample {n} of split train" for n in range(4, 8)
    ]


def test_where_nothing_can_be_decoded_batches_are_empty_and_cost_no_search_each(
    reader: ShardReader,
) -> None:
    tried: list[str] = []

    def decode(sample: RawSample) -> np.ndarray:
        tried.append(sample.key)
        raise ValueError("no decoder")

    batches = list(ShardLoader(reader, batch_size=3, decode=decode, skip_bad=True))
    assert {len(batch.fields) for batch in batches} == {0}
    assert sum(len(batch.bad) for batch in batches) == len(reader)
    assert len(tried) <= 2 * len(reader)


def test_arrays_that_do_not_fit_are_refused(reader: ShardReader) -> None:
    def decode(sample: RawSample) -> np.ndarray:
        return np.zeros((2, sample.index))

    with pytest.raises(ShardError, match="'inputs': a batch has"):
        next(iter(ShardLoader(reader, batch_size=3, decode=decode)))
    with pytest.raises(ShardError, match="torch has no dtype like"):
        next(iter(ShardLoader(reader, batch_size=3, decode=lambda _: np.zeros(2, ">f4"))))
