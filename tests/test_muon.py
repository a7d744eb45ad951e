"""Muon steps the matrices of attention and MLPs, AdamW the rest, in one optimizer."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from whole_state import gather_state, restore_state

from cluster import ClusterError
from cluster.deepspeed_engine import initialize_engine, leave_process_group
from cluster.strategy import Strategy
from perceiver_model import PerceiverClassifier
from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.config import EncoderConfig, FourierConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.config.training import TrainingConfig
from pipeline.training.optimizer import hidden_matrices, make_optimizer

STEPS, CUT = 4, 2
TRAINING = TrainingConfig(
    optimizer="muon", learning_rate=1e-2, momentum=0.9, betas=(0.8, 0.99), zero_stage=0
)


def build() -> nn.Module:
    torch.manual_seed(0)
    return PerceiverClassifier(
        ClassifierConfig(
            input=ImageInput(height=4, width=4),
            adapter=PixelsConfig(),
            positions=FourierConfig(num_bands=2),
            encoder=EncoderConfig(num_latents=3, latent_dim=8, num_blocks=1, num_cross_attends=1),
            num_classes=2,
        )
    )


def backward(model: Any, step: int) -> torch.Tensor:
    inputs = torch.rand(2, 4, 4, 3, generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1]))


def by_two_optimizers() -> dict[str, torch.Tensor]:
    model = build()
    hidden = hidden_matrices(model)
    others = [p for p in model.parameters() if p not in hidden]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers = [
        torch.optim.Muon(hidden, 1e-2, 0.1, 0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.99)),
    ]
    for step in range(STEPS):
        model.zero_grad()
        backward(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()
    return dict(model.named_parameters())


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    leave_process_group()


def run(first: int, last: int, state: Any = None, stage: int = 0) -> Any:
    model = build()
    if state:
        model.load_state_dict(state[0])
    strategy = Strategy(
        world_size=1,
        zero_stage=stage,
        micro_batch_size=2,
        gradient_accumulation_steps=1,
        gradient_clipping=0.0,
        precision="float32",
        device="cpu",
        optimizer="muon",
    )
    engine = initialize_engine(model, make_optimizer(model, TRAINING), strategy)
    if state:
        restore_state(engine, *state, step=first)
    for step in range(first, last):
        engine.backward(backward(engine, step))
        engine.step()
    return gather_state(engine)


@pytest.mark.usefixtures("one_rank")
def test_it_is_two_optimizers_and_resumes_bit_for_bit() -> None:
    weights, moments = run(0, STEPS)
    expected = by_two_optimizers()
    assert all(torch.equal(weights[name], p) for name, p in expected.items())
    half = run(0, CUT)
    again = run(CUT, STEPS, half)
    for found, whole in zip(again, (weights, moments), strict=True):
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole)
    kinds = {
        name.partition(".")[2]: name.partition(".")[0]
        for name in moments
        if "exp_avg_sq" not in name
    }
    assert {name for name, kind in kinds.items() if kind == "momentum_buffer"} == {
        name
        for name, p in build().named_parameters()
        if p.ndim == 2 and name.startswith(("encoder.cross_attends.", "encoder.blocks."))
    }
    assert kinds["encoder.latents"] == kinds["head.output.weight"] == "exp_avg"
    lamb = {f"{key}.{name}": p for key in ("mu", "nu") for name, p in weights.items()}
    with pytest.raises(ClusterError, match=r"not that of muon, but that of lamb \("):
        run(CUT, CUT, (half[0], lamb))


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_s_slices_are_refused(stage: int) -> None:
    with pytest.raises(ClusterError, match=f"zero_stage is {stage}, whose slices muon cannot step"):
        run(0, 1, stage=stage)
