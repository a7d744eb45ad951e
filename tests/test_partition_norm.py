"""The norm of a partition's gradients is DeepSpeed's, without a copy in float64."""

import math

import pytest
import torch
import torch.distributed as dist

from cluster.partition_norm import partition_norm


@pytest.fixture(autouse=True)
def _one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_it_sums_squares_in_float64_over_all_gradients():
    # In float32, 1 is lost beside 1e8.
    gradients = [torch.tensor([1e8]), torch.ones(10_000)]
    wanted = math.sqrt(1e16 + 10_000)
    assert partition_norm(gradients, None).item() == torch.tensor(wanted).item()


def test_padding_does_not_count():
    padding = torch.ones(3)
    padding._zero_padding = True
    assert partition_norm([torch.tensor([3.0, 4.0]), padding], None).item() == 5


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_minus_one(value):
    assert partition_norm([torch.tensor([value, 1.0])], None).item() == -1


def test_a_rank_without_gradients_adds_nothing():
    assert partition_norm([], None).item() == 0
