"""Models that are linear in the tokens, and the ladder that measures what tokens cost."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.runs.console import Console
from pipeline.studies.peers.linear import (
    ISAB,
    Performer,
    SetTransformer,
    favor,
    orthogonal_features,
)
from pipeline.studies.planning import base_config
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.works.ladder import measure_ladder

MODELS: dict[str, Callable[[], nn.Module]] = {
    "performer": lambda: Performer(3, 5, 16, 32, 2, 4),
    "set transformer": lambda: SetTransformer(3, 5, 16, 32, 2, 4, 8),
}


def test_favor_comes_near_softmax_attention_as_features_grow() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 50, 8) for _ in range(3))
    q, k = q / 2, k / 2  # the variance grows as exp |q + k|²
    exact = F.scaled_dot_product_attention(q, k, v)

    def error(num_features: int) -> float:
        found = favor(q, k, v, orthogonal_features(num_features, 8))
        return ((found - exact).norm() / exact.norm()).item()

    assert error(8192) < 0.1
    assert error(8192) < error(128) < error(8)


def test_random_features_are_orthogonal_in_blocks() -> None:
    found = F.normalize(orthogonal_features(16, 8), dim=1)
    for block in found.split(8):
        torch.testing.assert_close(block @ block.mT, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_linear_model_knows_no_order_of_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    images = torch.randn(2, 3, 4, 6)
    order = torch.randperm(24)
    moved = images.flatten(2)[:, :, order].view_as(images)
    torch.testing.assert_close(model(images), model(moved), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(images)[0], model(images)[1], atol=1e-3)


def test_an_induced_block_passes_all_between_tokens_through_its_points() -> None:
    torch.manual_seed(0)
    block, tokens = ISAB(16, 32, 4, 2), torch.randn(1, 6, 16)
    changed = tokens.clone()
    changed[0, 0] += 1
    assert not torch.allclose(block(tokens)[0, 1], block(changed)[0, 1], atol=1e-4)


def test_a_ladder_is_measured_up_to_the_limit(console: Console) -> None:
    study = STUDIES["linear-cost"].at_scale("tiny")
    base = base_config(Request("linear-cost", output="runs"), study.scales["tiny"])
    arm = next(each for each in study.arms if each.label == "full attention")
    sides = [4, 8, 512, 1024]
    found = measure_ladder(arm.config(base), {**arm.options, "sides": sides}, console)
    assert list(found["step_ms"]) == [side**2 for side in sides]
    assert [value is None for value in found["step_ms"].values()] == [False, False, True, True]
    assert found["ends"].startswith("not measured at 262,144 tokens and above")
    assert found["step_mib"][64] > found["step_mib"][16] > 0


def test_all_models_of_the_study_have_as_many_parameters(console: Console) -> None:
    study = STUDIES["linear-cost"].at_scale("tiny")
    base = base_config(Request("linear-cost", output="runs"), study.scales["tiny"])
    arms = [each for each in study.arms if each.work == "ladder"]
    found = {
        arm.label: measure_ladder(arm.config(base), {**arm.options, "sides": [8]}, console)
        for arm in arms
    }
    ours = found.pop("Perceiver")["parameters"]
    for each in found.values():
        assert each["parameters"] == pytest.approx(ours, rel=0.05)
