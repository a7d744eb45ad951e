"""LAMB under ZeRO: on two workers, in slices, what it is on one worker with whole tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from torch import nn
from whole_state import gather_state, restore_state

from cluster import ClusterError, tensor_slices
from cluster.deepspeed_engine import initialize_engine, leave_process_group
from cluster.lamb import Lamb
from cluster.strategy import Strategy

BATCH, STEPS, CUT = 8, 20, 9
STAGES = (0, 1, 2, 3)
RATE, BETAS, EPS, DECAY, CLIPPING = 2e-2, (0.9, 0.99), 1e-6, 0.1, 0.5
State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
Gradients = dict[str, torch.Tensor]


def build() -> nn.Module:
    """No size divides evenly among two ranks; one layer is used twice, one number is alone."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([0.7]))
            self.inner = nn.Linear(7, 13)
            self.shared = nn.Linear(13, 13)
            self.norm = nn.LayerNorm(13)
            self.out = nn.Linear(13, 3)
            nn.init.zeros_(self.out.bias)  # its first trust ratio is 1

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden = F.gelu(self.inner(inputs) * self.scale)
            hidden = self.shared(F.gelu(self.shared(hidden)))
            return self.out(self.norm(hidden)).float()

    return Net()


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 7, generator=generator)
    return inputs, torch.randint(0, 3, (BATCH,), generator=generator)


def lamb(model: nn.Module) -> Lamb:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return Lamb(groups, lr=RATE, betas=BETAS, eps=EPS)


def by_the_paper(gradients: Sequence[Gradients] = ()) -> State:
    """Algorithm 2 of You et al. on whole tensors, in float64 but for weights and gradients.

    Args:
        gradients: Of each step, before clipping; by default those of the whole batch.
    """
    model = build()
    mean = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    square = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    for step in range(STEPS):
        inputs, targets = data(step)
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        for name, x in model.named_parameters() if gradients else ():
            x.grad = gradients[step][name]
        nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        for name, x in model.named_parameters():
            assert x.grad is not None
            g = x.grad.double()
            mean[name] = BETAS[0] * mean[name] + (1 - BETAS[0]) * g
            square[name] = BETAS[1] * square[name] + (1 - BETAS[1]) * g**2
            m = mean[name] / (1 - BETAS[0] ** (step + 1))
            v = square[name] / (1 - BETAS[1] ** (step + 1))
            update = m / (v.sqrt() + EPS)
            if x.ndim > 1:
                update = update + DECAY * x.data.double()
            ratio = x.data.double().norm() / update.norm() if x.data.norm() > 0 else 1.0
            x.data = (x.data.double() - RATE * ratio * update).float()
    moments = {f"mu.{name}": m.float() for name, m in mean.items()}
    moments |= {f"nu.{name}": v.float() for name, v in square.items()}
    return {name: p.data for name, p in model.named_parameters()}, moments


def engine_of(stage: int, precision: Any = "float32", weights: Any = None) -> Any:
    world_size = dist.get_world_size()
    model = build()
    strategy = Strategy(
        world_size=world_size,
        zero_stage=stage,
        micro_batch_size=BATCH // world_size,
        gradient_accumulation_steps=1,
        gradient_clipping=CLIPPING,
        precision=precision,
        device="cpu",
        optimizer="lamb",
    )
    return initialize_engine(model, lamb(model), strategy)


def run(engine: Any, first: int, last: int, state: State | None = None, kept: Any = None) -> State:
    """Train this process's ranks and return the gathered state; `kept` takes the gradients."""
    from deepspeed.utils import safe_get_full_grad

    if state:
        restore_state(engine, *state, step=first)
    part = BATCH // dist.get_world_size()
    own = slice(dist.get_rank() * part, (dist.get_rank() + 1) * part)
    for step in range(first, last):
        inputs, targets = (t[own] for t in data(step))
        engine.backward(F.cross_entropy(engine(inputs), targets))
        if kept is not None:
            named = engine.module.named_parameters()
            kept.append({name: safe_get_full_grad(p).clone() for name, p in named})
        engine.step()
    return gather_state(engine)


def all_reduces_of_a_step(engine: Any) -> int:
    """How many sums over the ranks LAMB itself starts in one step of the engine."""
    calls, whole, step = [], dist.all_reduce, Lamb.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return whole(*args, **kwargs)

    def watched(self: Lamb, closure: Any = None) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_reduce", counted)
            return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lamb, "step", watched)
        run(engine, 0, 1)
    return len(calls)


def ranks(rank: int, folder: str) -> None:
    join_ranks(rank, 2, folder)
    results: dict[Any, Any] = {}
    for stage in STAGES:
        results[stage, "whole"] = run(engine_of(stage), 0, STEPS)
        half = results[stage, "half"] = run(engine_of(stage), 0, CUT)
        results[stage, "resumed"] = run(engine_of(stage, weights=half[0]), CUT, STEPS, half)
        gradients = results[stage, "gradients"] = []
        results[stage, "bf16"] = run(engine_of(stage, "bf16"), 0, STEPS, kept=gradients)
        results[stage, "all_reduces"] = all_reduces_of_a_step(engine_of(stage))
    if rank == 0:
        torch.save(results, f"{folder}/2.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("lamb")
    run_ranks(ranks, (str(folder),), 2)
    return torch.load(folder / "2.pt")


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    leave_process_group()


def difference(found: State, expected: State) -> float:
    assert [part.keys() for part in found] == [part.keys() for part in expected]
    return max(
        (a[name] - b[name]).abs().max().item()
        for a, b in zip(found, expected, strict=True)
        for name in a
    )


@pytest.mark.parametrize("stage", STAGES)
def test_twenty_steps_on_two_ranks_are_the_paper_s_on_whole_tensors(
    two_ranks: Any, stage: int
) -> None:
    expected = by_the_paper()
    start = {name: p.data for name, p in build().named_parameters()}
    assert all((expected[0][name] - start[name]).abs().max() > 0.01 for name in start)
    assert difference(two_ranks[stage, "whole"], expected) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_so_are_those_of_bfloat16_gradients(two_ranks: Any, stage: int) -> None:
    # Stage 3 computes other gradients than the others, because its linear layers round otherwise.
    expected = by_the_paper(two_ranks[stage, "gradients"])
    assert difference(expected, by_the_paper()) > 1e-4
    assert difference(two_ranks[stage, "bf16"], expected) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_a_restored_engine_goes_on_bit_for_bit(two_ranks: Any, stage: int) -> None:
    assert difference(two_ranks[stage, "resumed"], two_ranks[stage, "whole"]) == 0


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_at_another_stage_goes_on_to_the_same(two_ranks: Any, stage: int) -> None:
    half = two_ranks[(stage + 1) % 4, "half"]
    resumed = run(engine_of(stage, weights=half[0]), CUT, STEPS, half)
    assert difference(resumed, by_the_paper()) < 1e-6


def test_the_norms_of_all_tensors_are_one_sum_over_the_ranks_a_step(two_ranks: Any) -> None:
    assert [two_ranks[stage, "all_reduces"] for stage in STAGES] == [0, 1, 1, 1]


@pytest.mark.usefixtures("one_rank")
def test_the_moments_of_adamw_are_refused_by_name() -> None:
    engine = engine_of(1)
    weights = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    adamw = {f"{key}.{name}": w for key in ("exp_avg", "exp_avg_sq") for name, w in weights.items()}
    with pytest.raises(ClusterError, match=r"not that of lamb, but that of adamw \(exp_avg"):
        restore_state(engine, weights, adamw, step=3)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda part: part.roll(1), "lies in no flat tensor"),
        (lambda part: part[:-1], "do not cover it"),
        (lambda part: part.as_strided(part.shape, part.stride(), 0), "slices overlap"),
    ],
)
def test_another_layout_of_deepspeed_s_is_refused(
    monkeypatch: pytest.MonkeyPatch, stage: int, wrong: Any, message: str
) -> None:
    name = "_own_part" if stage == 3 else "_own_fragment"
    right = getattr(tensor_slices, name)

    def altered(tensor: torch.nn.Parameter) -> torch.Tensor:
        part: torch.Tensor = right(tensor)
        return wrong(part) if tensor.shape == (13, 13) or hasattr(tensor, "ds_id") else part

    monkeypatch.setattr(tensor_slices, name, altered)
    with pytest.raises(ClusterError, match=rf"DeepSpeed [\d.]+ lays parameters out .*{message}"):
        engine_of(stage)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_tensors_of_one_size_that_changed_places_are_refused(
    monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    right = tensor_slices._slices

    def exchanged(engine: Any, tensors: Any) -> Any:
        names = {id(p): name for name, p in engine.module.named_parameters()}
        order = [names[id(tensor)] for tensor in tensors]
        first, second = order.index("inner.bias"), order.index("shared.bias")
        other = {first: second, second: first}
        return {
            flat: [replace(piece, tensor=other.get(piece.tensor, piece.tensor)) for piece in pieces]
            for flat, pieces in right(engine, tensors).items()
        }

    monkeypatch.setattr(tensor_slices, "_slices", exchanged)
    with pytest.raises(ClusterError, match="do not hold its values"):
        engine_of(stage)


@pytest.mark.usefixtures("one_rank")
def test_a_deepspeed_without_the_records_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed.runtime.zero.stage_1_and_2 as zero

    monkeypatch.setattr(zero, "link_hp_params", lambda **_: None)
    monkeypatch.setattr(zero.DeepSpeedZeroOptimizer, "_enable_universal_checkpoint", lambda _: None)
    monkeypatch.setattr(zero.DeepSpeedZeroOptimizer, "_create_param_mapping", lambda _: None)
    with pytest.raises(ClusterError, match="no attribute '_hp_mapping'"):
        engine_of(2)


def test_a_group_scales_its_learning_rate_and_has_no_other_key() -> None:
    start = torch.randn(2, 3, 5)
    whole, half = (nn.Parameter(values.clone()) for values in (start[0], start[0]))
    groups: list[dict[str, Any]] = [
        {"params": [whole], "weight_decay": DECAY},
        {"params": [half], "weight_decay": DECAY, "learning_rate_scale": 0.5},
    ]
    optimizer = Lamb(groups, lr=RATE)
    for parameter in (whole, half):
        parameter.grad = start[1]
    optimizer.step()
    torch.testing.assert_close(whole - start[0], 2 * (half - start[0]))
    with pytest.raises(ValueError, match="LAMB does not know lr of parameter groups"):
        Lamb([groups[0] | {"lr": 0.1}])


def test_a_tensor_that_it_was_not_given_is_refused() -> None:
    model = build()
    optimizer = lamb(model)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).requires_grad_()
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match="layout it does not know"):
        optimizer.step()
