"""`training.canonical_nodes`: what the ranks of a training read, and what is refused."""

from pathlib import Path

import pytest
import torch
from test_balance_classes import config_of, trained
from trainings import cut_off_after, difference

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.training.fingerprint import DEFAULTS, training_fingerprint
from pipeline.training.loaders import train_loader, validation_loader
from pipeline.training.objectives import objective_of
from pipeline.training.rank_info import RankInfo
from shards import ShardSet

CPU = torch.device("cpu")


def numbers(config: Config, world_size: int) -> list[list[int]]:
    """The samples of each micro-batch of the first epoch, in the order of ranks and rows."""
    shard_set = ShardSet.open(config.shards_folder)
    objective = objective_of(config, shard_set)
    loaders = [
        train_loader(config, objective, shard_set, RankInfo(rank, rank, 0, world_size, CPU))
        for rank in range(world_size)
    ]
    return [
        [number for batch in batches for number in batch.numbers.tolist() if number >= 0]
        for batches in zip(*loaders, strict=True)
    ]


def test_micro_batches_are_the_same_on_any_ranks_and_each_step_in_any_micro_batches(
    tmp_path: Path,
) -> None:
    config = with_values(config_of(tmp_path, 0.0), {"training.canonical_nodes": 2})
    alone = numbers(config, 1)
    assert numbers(config, 2) == numbers(config, 3) == alone
    assert len({number for batch in alone for number in batch}) == len(alone) * 8
    assert alone != numbers(config_of(tmp_path, 0.0), 1)
    halves = numbers(with_values(config, {"training.gradient_accumulation_steps": 2}), 2)
    steps = [[*halves[i], *halves[i + 1]] for i in range(0, len(halves), 2)]
    assert [sorted(step) for step in steps] == [sorted(step) for step in alone]


def test_a_training_resumes_exactly_and_the_validation_reads_each_sample_once(
    tmp_path: Path,
) -> None:
    config = with_values(config_of(tmp_path, 0.0), {"training.canonical_nodes": 4})
    whole = trained(config, tmp_path / "whole")
    with cut_off_after(5):
        trained(config, tmp_path / "cut")
    assert difference(trained(config, tmp_path / "cut"), whole) == 0
    plain = trained(config_of(tmp_path, 0.0), tmp_path / "plain")
    assert difference(plain, whole) > 0
    shard_set = ShardSet.open(config.shards_folder)
    loader = validation_loader(
        config, objective_of(config, shard_set), shard_set, RankInfo(0, 0, 0, 1, CPU)
    )
    assert loader is not None
    read = [number for batch in loader for number in batch.numbers.tolist() if number >= 0]
    assert sorted(read) == list(range(shard_set.num_samples("validation")))


def test_it_is_part_of_the_fingerprint_and_an_older_record_means_1(tmp_path: Path) -> None:
    config = config_of(tmp_path, 0.0)
    shard_set = ShardSet.open(config.shards_folder)
    assert DEFAULTS["training.canonical_nodes"] == 1
    two = with_values(config, {"training.canonical_nodes": 2})
    fingerprints = [training_fingerprint(each, shard_set) for each in (config, two)]
    assert [each["training.canonical_nodes"] for each in fingerprints] == [1, 2]


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, 0.0)
    with pytest.raises(UserError, match=r"canonical_nodes is 3, .*; give a divisor of 8"):
        with_values(config, {"training.canonical_nodes": 3})
    with pytest.raises(UserError, match="canonical_nodes is 2, and balance_classes"):
        with_values(config, {"training.canonical_nodes": 2, "training.balance_classes": 0.5})
