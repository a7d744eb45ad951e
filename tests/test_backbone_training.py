"""Trainings with a backbone: engines, what is refused before the start, and what is recorded."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from small_backbone import SmallNet
from test_backbone import backbone, model

from cluster.deepspeed_engine import Strategy, initialize_engine, leave_process_group
from cluster.engine_state import gather_state, restore_state
from perceiver_model.attention.cross_attend import CrossAttend
from pipeline.config.training import TrainingConfig
from pipeline.training.optimizer import make_optimizer

State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    leave_process_group()


def steps(frozen: bool, stage: int, first: int, last: int, state: State | None = None) -> State:
    """Train a classifier with an engine, from a gathered state on if there is one."""
    # The first map is a convolution's, whose weights stage 3 gathers for it alone.
    outputs, arguments = ("stages.2.0", "stages.1"), {"width": 48}
    made = model(backbone(frozen=frozen, outputs=outputs, arguments=arguments))
    if state:
        made.load_state_dict(state[0])
    training = TrainingConfig(learning_rate=1e-3, weight_decay=0.1)
    strategy = Strategy(
        world_size=1, zero_stage=stage, micro_batch_size=4, gradient_accumulation_steps=1,
        gradient_clipping=0.0, precision="float32", device="cpu",
    )  # fmt: skip
    optimizer = make_optimizer(made, training)
    engine = initialize_engine(made, optimizer, strategy, gathered_whole=[CrossAttend])
    if state:
        restore_state(engine, *state, step=first)
    for step in range(first, last):
        engine.eval()
        engine.train()
        images = torch.rand(4, 28, 20, 1, generator=torch.Generator().manual_seed(step))
        loss = torch.nn.functional.cross_entropy(engine(images), torch.arange(4))
        engine.backward(loss)
        engine.step()
    return gather_state(engine)


@pytest.mark.parametrize("frozen", [True, False])
def test_backbones_train_and_resume_at_every_zero_stage(one_process: None, frozen: bool) -> None:
    whole = steps(frozen, 0, 0, 3)
    half = steps(frozen, 0, 0, 2)
    for found, expected in zip(steps(frozen, 0, 2, 3, half), whole, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    own = {name.removeprefix("adapter.module.") for name in whole[0] if "module" in name}
    assert own == SmallNet().state_dict().keys()
    moved = {name for name in whole[0] if not torch.equal(whole[0][name], half[0][name])}
    assert ("adapter.module.stages.2.0.weight" in moved) != frozen
    assert not {name for name in moved if "running" in name or ".fc." in name}
    for stage in (1, 2, 3):
        for found, expected in zip(steps(frozen, stage, 2, 3, half), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
