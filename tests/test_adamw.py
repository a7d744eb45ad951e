"""AdamW in blocks: the bits of torch's AdamW, whatever the length of a tensor."""

from collections.abc import Sequence

import pytest
import torch

from cluster.adamw import BLOCK, AdamW
from cluster.optimizers import name_of


def groups_of(lengths: Sequence[int]) -> list[dict[str, object]]:
    random = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(each, generator=random)) for each in lengths]
    half = len(params) // 2
    return [
        {"params": params[:half], "weight_decay": 0.1},
        {"params": params[half:], "weight_decay": 0.0},
    ]


def step(optimizer: torch.optim.Optimizer, number: int) -> None:
    random = torch.Generator().manual_seed(number)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=random)
    optimizer.step()


@pytest.mark.parametrize("threads", [1, 2])
def test_its_weights_and_state_are_those_of_torchs_to_the_bit(threads):
    lengths = (3, BLOCK, BLOCK + 1, 3 * BLOCK - 5, 2)
    ours, torchs = AdamW(groups_of(lengths), lr=1e-2), torch.optim.AdamW(groups_of(lengths), 1e-2)
    torch.set_num_threads(threads)
    try:
        for number in range(4):
            step(ours, number)
            step(torchs, number)
    finally:
        torch.set_num_threads(1)
    for own, their in zip(ours.param_groups, torchs.param_groups, strict=True):
        for one, other in zip(own["params"], their["params"], strict=True):
            assert torch.equal(one, other)
            assert ours.state[one].keys() == torchs.state[other].keys()
            for key, value in ours.state[one].items():
                assert torch.equal(value, torchs.state[other][key]), key


def test_long_tensors_are_divided_and_others_are_not(monkeypatch):
    from torch.optim import adam

    taken: list[int] = []
    whole = adam.adam

    def counted(params: list[torch.Tensor], *rest: object, **options: object) -> None:
        taken.extend(each.numel() for each in params)
        whole(params, *rest, **options)

    monkeypatch.setattr(adam, "adam", counted)
    step(AdamW(groups_of((BLOCK, 2 * BLOCK + 1)), lr=1e-2), 0)
    assert taken == [BLOCK, BLOCK, BLOCK, 1]


def test_the_table_knows_it_by_torchs_name():
    assert name_of(AdamW(groups_of((2, 2)), lr=1e-2)) == "adamw"
