"""Products in fp8: `training.precision` of `fp8`."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_steps import config as config
from test_bad_steps import trained
from test_residual_stream import BF16, Models
from torch import nn

from perceiver_model.attention.fp8 import multiplies_fp8, set_fp8_products
from perceiver_model.attention.multi_head import SelfAttend
from pipeline.errors import UserError
from pipeline.plan.devices import device_named
from pipeline.plan.remarks import problems_of_device
from pipeline.training.precision import compute_as, precision_notes, products_in

LARGEST = 448.0
"""The largest number of float8 e4m3."""
STEP = 2.0**-4
"""The largest relative error of a number that is rounded to float8 e4m3."""


def rounded_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return float64 rows as fp8 has them, each with the largest power of 2 that fits as its scale.

    Kernels of fp8 take such scales, because they add no rounding of their own.
    """
    scale = 2.0 ** (LARGEST / rows.abs().amax(dim=1, keepdim=True)).log2().floor()
    return (rows * scale).float().to(torch.float8_e4m3fn).double() / scale


def products(layer: nn.Linear, inputs: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs of a layer and the gradients of its inputs, bfloat16, and its weights."""
    inputs = inputs.to(BF16).requires_grad_()
    layer.zero_grad()
    with torch.autocast(inputs.device.type, BF16):
        outputs = layer(inputs)
    (outputs.float() * weights).sum().backward()
    assert inputs.grad is not None and layer.weight.grad is not None
    return [outputs.detach(), inputs.grad, layer.weight.grad]


def attend_in_fp8(channels: int = 32) -> SelfAttend:
    torch.manual_seed(0)
    attend = SelfAttend(channels=channels, num_heads=2)
    set_fp8_products(attend, True)
    return attend


def test_each_row_of_both_factors_has_a_scale_of_its_own() -> None:
    layer = attend_in_fp8().query_key_value
    # A scale of all rows would leave nothing of the small ones.
    inputs = torch.randn(48, 32) * torch.logspace(-3, 3, 48)[:, None]
    signs = torch.randn(48, 96).to(BF16).float()
    found = products(layer, inputs, signs)
    taken, weight = inputs.to(BF16).double(), layer.weight.detach().double()
    outer = signs.double()
    expected = [
        rounded_rows(taken) @ rounded_rows(weight).T,
        rounded_rows(outer) @ rounded_rows(weight.T).T,
        rounded_rows(outer.T) @ rounded_rows(taken.T).T,
    ]
    exact = [taken @ weight.T, outer @ weight, outer.T @ taken]
    for each, rounded, true in zip(found, expected, exact, strict=True):
        error = (each.double() - rounded).abs() / rounded.abs().amax(dim=1, keepdim=True)
        assert error.max() < 2 * 2.0**-8  # of bfloat16
        assert (true - rounded).abs().max() > 0  # it is fp8, and not bfloat16
        assert ((true - rounded).norm() / true.norm()) < 2 * STEP


def test_emulated_products_are_those_of_fp8_to_the_bit() -> None:
    """The kernel of fp8 of a CPU is exact and slow. That of a GPU sums in another order."""
    emulated, real = attend_in_fp8().query_key_value, attend_in_fp8().query_key_value
    assert emulated.config.emulate
    real.config = copy.deepcopy(real.config)
    object.__setattr__(real.config, "emulate", False)
    inputs, signs = torch.randn(32, 32), torch.randn(32, 96)
    for one, other in zip(
        products(emulated, inputs, signs), products(real, inputs, signs), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.skipif(
    not torch.cuda.is_available() or not multiplies_fp8(torch.device("cuda")),
    reason="needs a GPU with fp8",
)
def test_a_gpu_multiplies_what_others_emulate() -> None:
    emulated = attend_in_fp8(256)
    torch.manual_seed(0)
    real = SelfAttend(channels=256, num_heads=2).cuda()
    set_fp8_products(real, True)
    assert not real.query_key_value.config.emulate
    inputs, signs = torch.randn(512, 256), torch.randn(512, 768)
    for one, other in zip(
        products(emulated.query_key_value, inputs, signs),
        products(real.query_key_value, inputs.cuda(), signs.cuda()),
        strict=True,
    ):
        assert (one - other.cpu()).abs().max() <= 2 * 2.0**-8 * one.abs().max()


def test_only_attends_of_latents_multiply_in_fp8_and_no_name_changes() -> None:
    models = Models()
    names, outputs = list(models.whole.state_dict()), models.outputs()
    parameters = {name: id(each) for name, each in models.whole.named_parameters()}
    with torch.autocast("cpu", BF16):
        compute_as(models.whole, "bf16", "auto")
        before = models.outputs()
        compute_as(models.whole, "fp8", "auto")
        found = models.outputs()
        changed = {
            name for name, each in models.whole.named_modules()
            if isinstance(each, nn.Linear) and type(each) is not nn.Linear
        }  # fmt: skip
        assert list(models.whole.state_dict()) == names
        assert {name: id(each) for name, each in models.whole.named_parameters()} == parameters
        compute_as(models.whole, "bf16", "auto")
        again = models.outputs()
    linear = {name for name, each in models.whole.named_modules() if isinstance(each, nn.Linear)}
    assert changed == {
        name for name in linear if ".blocks." in name or name.startswith("2.self_attends")
    }
    assert {name.rpartition(".")[2] for name in changed} == {
        "query_key_value", "output", "expand", "contract"
    }  # fmt: skip
    for exact, one, other, back in zip(outputs, before, found, again, strict=True):
        assert torch.equal(one, back)
        assert not torch.equal(one, other)
        assert (other - exact).abs().max() < 0.2 * exact.abs().max()


def test_any_number_of_latents_and_channels_will_do() -> None:
    attend = attend_in_fp8(channels=20)
    latents = torch.randn(3, 7, 20, requires_grad=True)
    with torch.autocast("cpu", BF16):
        attend(latents).sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_training_learns_as_in_bf16_and_keeps_its_weights_in_float32(
    config: Callable[..., Any], tmp_path: Path, stage: int
) -> None:
    found = {
        precision: trained(config(zero_stage=stage, precision=precision), tmp_path / precision)
        for precision in ("bf16", "fp8")
    }
    losses = {name: last.state.metrics["train_loss"] for name, (last, _) in found.items()}
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.15)
    assert losses["fp8"] != losses["bf16"]
    weights = {name: weights for name, (_, weights) in found.items()}
    assert weights["fp8"].keys() == weights["bf16"].keys()
    assert all(each.dtype == torch.float32 for each in weights["fp8"].values())


def test_a_machine_without_the_package_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"fp8 needs torchao .*perceiver-pipeline\[fp8\]"):
        compute_as(SelfAttend(channels=8, num_heads=2), "fp8", "auto")


def test_where_fp8_is_emulated_it_is_said(config: Callable[..., Any]) -> None:
    (note,) = precision_notes("fp8", torch.device("cpu"))
    assert "emulated, because a CPU has no products of fp8" in note
    assert precision_notes("bf16", torch.device("cpu")) == []
    assert products_in("fp8") == "bf16"
    chosen = config(precision="fp8")
    (problem, *_) = problems_of_device(chosen, device_named("a100-80", "bf16"))
    assert "'fp8', which a100-80 has no products of" in problem
    assert "has no products" not in str(problems_of_device(chosen, device_named("h100", "bf16")))
