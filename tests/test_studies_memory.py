"""Models of streams: what they carry, what they cannot recall, and how large they are."""

from functools import partial
from typing import Any

import pytest
import torch

from perceiver_model import PerceiverClassifier, num_parameters
from pipeline.studies.peers.recurrent import (
    GRU,
    CarriedLatents,
    Recall,
    SlotMemory,
    TruncatedContext,
)
from pipeline.studies.planning import base_config
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.works.recall import measure_recall, parts_in, recall_loss, recall_model

LAGS, SIDE = 2, 4


def perceiver() -> PerceiverClassifier:
    study = STUDIES["memory"].at_scale("tiny")
    small = ("data.image.height=4", "data.image.width=4")
    base = base_config(Request("memory", output="runs", overrides=small), study.scales["tiny"])
    return PerceiverClassifier(base.classifier(10))


def models() -> dict[str, Recall]:
    torch.manual_seed(0)
    return {
        "carried": CarriedLatents(perceiver(), LAGS, 10),
        "truncated": TruncatedContext(perceiver(), LAGS, 10, 2),
        "gru": GRU(SIDE * SIDE, LAGS, 10, 16, 16),
        "slots": SlotMemory((SIDE, SIDE), 1, LAGS, 10, 16, 16, 4),
    }


def last_logits(model: Recall, stream: torch.Tensor) -> torch.Tensor:
    state: Any = None
    with torch.no_grad():
        for part in stream:
            logits, state = model(part, state)
    return logits


@pytest.mark.parametrize(
    ("name", "reach"), [("carried", 4), ("truncated", 2), ("gru", 4), ("slots", 4)]
)
def test_what_a_model_can_know_of_earlier_parts(name: str, reach: int) -> None:
    """A truncated context cannot know what is older than it; what is carried can."""
    model = models()[name].eval()
    stream = torch.randint(256, (4, 1, SIDE, SIDE, 1), dtype=torch.uint8)
    before = last_logits(model, stream)
    assert before.shape == (1, LAGS, 10)
    for age in range(4):
        changed = stream.clone()
        changed[3 - age] = 255 - changed[3 - age]
        moved = (last_logits(model, changed) - before).abs().max() > 1e-7
        assert moved == (age < reach), age


@pytest.mark.parametrize("kind", ["carried", "cut"])
def test_gradients_reach_earlier_parts_unless_they_are_cut(kind: str) -> None:
    torch.manual_seed(0)
    model = CarriedLatents(perceiver(), LAGS, 10)
    images = torch.rand(2, 3, SIDE, SIDE, 1, requires_grad=True)
    targets = torch.randint(10, (2, 3))
    loss = recall_loss(model, images, targets, {"model": kind, "lags": [2, 5]})
    (gradient,) = torch.autograd.grad(loss, images)
    # Only the last part has an answer to give, about the first.
    assert (gradient[:, 0].abs().sum() > 0) == (kind == "carried")
    assert gradient[:, 2].abs().sum() > 0


def test_streams_grow_to_their_full_length_in_half_of_the_epochs() -> None:
    grown = [parts_in(epoch, 40, 12) for epoch in range(40)]
    assert grown[0] == 1 and grown == sorted(grown)
    assert set(grown) == set(range(1, 13)) and grown[20:] == [12] * 20
    assert [parts_in(epoch, 1, 12) for epoch in range(1)] == [1]


class Perfect(Recall):
    """Knows the class of the part before, which is its first pixel."""

    def forward(self, images: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        now = images[:, 0, 0, 0].long()
        before = torch.zeros_like(now) if state is None else state
        named = torch.stack([now, before, torch.zeros_like(now)], dim=1)
        return torch.nn.functional.one_hot(named, 10).float(), now


def test_recall_is_counted_by_distance() -> None:
    targets = torch.arange(10).repeat(4)
    images = targets[:, None, None, None].expand(-1, 2, 2, 1).to(torch.uint8)
    found = measure_recall(Perfect(), images, targets, {"lags": [0, 1, 3], "tested_parts": 8})
    assert (found[0], found[1]) == (1, 1)
    assert 0 < found[3] < 0.4


def test_the_models_of_the_study_have_as_many_parameters() -> None:
    study = STUDIES["memory"]
    base = base_config(Request("memory", output="runs"), study.scales["small"])
    arms = {arm.label: arm for arm in study.arms}

    def size(label: str) -> int:
        config = arms[label].config(base, {"data.image.height": 8, "data.image.width": 8})
        build = partial(PerceiverClassifier, config.classifier(10))
        return num_parameters(recall_model(config, arms[label].options, build, 10))

    ours = size("16 latents")
    for label in ("GRU", "slot memory"):
        assert size(label) == pytest.approx(ours, rel=0.05)
