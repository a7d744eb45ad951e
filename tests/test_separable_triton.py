"""The GPU kernels, against the same sums over an array of all weights in float64.

Without a GPU they run in Triton's interpreter, and are compiled for an H100 without being run; both
in processes of their own, which run this file.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from perceiver_model.attention import separable as module
from perceiver_model.attention.separable import separable_attention

triton = pytest.importorskip("triton", reason="triton comes with torch's CUDA builds only")

TRITON_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
NUMPY_VERSION = tuple(int(part) for part in np.__version__.split(".")[:2])


class Case(NamedTuple):
    """Sizes, and what is particular about the inputs."""

    batch: int = 2
    heads: int = 1
    queries: int = 5
    rows: int = 3
    columns: int = 7
    channels: int = 3
    masked: bool = False
    shared_queries: bool = False
    factor: float = 1.0


SMALL = {
    "pixels": Case(),
    "mask, and a sample without tokens": Case(batch=3, heads=2, masked=True),
    "queries shared by the batch": Case(batch=3, heads=2, shared_queries=True),
    "one query and one token": Case(batch=1, queries=1, rows=1, columns=1, channels=1),
    "several blocks of queries and columns": Case(queries=70, rows=2, columns=33, channels=4),
    "several groups of rows": Case(rows=35, columns=2, channels=1, factor=100.0),
    "matrix products": Case(heads=2, queries=33, columns=16, channels=5, masked=True),
    "many channels": Case(rows=2, columns=17, channels=40, shared_queries=True),
    "large scores": Case(factor=100.0),
    "large scores where masked": Case(batch=4, factor=100.0, masked=True),
}
LARGE = {
    "ImageNet": Case(queries=512, rows=224, columns=224),
    "ImageNet, masked and shared": Case(3, 2, 100, 224, 224, masked=True, shared_queries=True),
    "full batch": Case(batch=64, queries=64, rows=56, columns=56, channels=4),
    "stem": Case(queries=256, rows=56, columns=56, channels=64, masked=True),
    "patches": Case(heads=4, queries=100, rows=14, columns=14, channels=32),
    "long rows": Case(queries=20, rows=3, columns=3000),
}


def inputs_of(case: Case, device: str) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    tokens = case.rows * case.columns
    samples = 1 if case.shared_queries else case.batch
    queries = samples, case.heads, case.queries
    tensors = [
        # A part of a wider array, as it is in the model.
        (case.factor * normal(*queries, case.channels + 2))[..., : case.channels],
        case.factor * normal(*queries, case.rows),
        case.factor * normal(*queries, case.columns),
        normal(case.batch, tokens, case.channels),
        torch.rand(case.batch, tokens, generator=generator).to(device) + 0.5,
    ]
    mask = torch.rand(case.batch, tokens, generator=generator).to(device) < 0.6
    mask[0] = False
    return [tensor.requires_grad_() for tensor in tensors], mask if case.masked else None


def plain(queries, row_scores, column_scores, content, scale, mask):
    """The sums from all weights at once."""
    scale = scale[:, None, None]
    products = (row_scores[..., :, None] + column_scores[..., None, :]).flatten(-2)
    scores = (products + queries @ content.mT[:, None]) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -1e300)
    weights = scores.softmax(dim=-1) * scale
    if mask is not None:
        weights = weights * mask.any(dim=-1)[:, None, None, None]
    by_row = weights.unflatten(-1, (row_scores.shape[-1], column_scores.shape[-1]))
    return weights @ content[:, None], by_row.sum(dim=-1), by_row.sum(dim=-2)


def results(function, inputs, mask, batch: int) -> list[torch.Tensor]:
    """The three sums and, in some direction, the gradients of the five inputs."""
    tables = [tensor.expand(batch, -1, -1, -1) for tensor in inputs[:3]]
    sums = function(*tables, *inputs[3:], mask)
    generator = torch.Generator().manual_seed(1)
    directions = (torch.randn(part.shape, generator=generator).to(part) for part in sums)
    total = sum((part * direction).sum() for part, direction in zip(sums, directions, strict=True))
    return [*sums, *torch.autograd.grad(total, inputs)]


def largest_errors(case: Case, device: str) -> list[float]:
    """Of each result the largest error, relative to the largest number if that is over 1."""
    inputs, mask = inputs_of(case, device)
    found = results(separable_attention, inputs, mask, case.batch)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = results(plain, exact, mask, case.batch)
    assert all(part.shape == other.shape for part, other in zip(found, expected, strict=True))
    return [
        ((part - other).abs().max() / other.abs().max().clamp(min=1)).item()
        for part, other in zip(found, expected, strict=True)
    ]


def in_its_own_process(function: str, **environment: str) -> Any:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, function],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    if TRITON_VERSION < (3, 9) and NUMPY_VERSION >= (2, 4):
        pytest.skip("this triton's interpreter does not know this NumPy")
    return in_its_own_process("interpret", TRITON_INTERPRET="1")


def interpret() -> dict[str, list[float]]:
    """The largest errors of every small case, with the kernels as the operator's of the CPU."""
    from perceiver_model.attention import separable_triton

    np.seterr(all="ignore")
    module._separable_attention.register_kernel("cpu")(separable_triton.attention)
    module._separable_attention_backward.register_kernel("cpu")(separable_triton.attention_backward)
    return {name: largest_errors(case, "cpu") for name, case in SMALL.items()}


@pytest.mark.parametrize("name", SMALL)
def test_sums_and_gradients_are_those_of_all_weights(interpreted, name):
    assert max(interpreted[name]) < 1e-5 * SMALL[name].factor, interpreted[name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SMALL | LARGE)
def test_sums_and_gradients_on_a_gpu_are_those_of_all_weights(name):
    case = (SMALL | LARGE)[name]
    errors = largest_errors(case, "cuda")
    # Sums over thousands of tokens; float32 on a CPU errs by up to 6e-5 here.
    assert max(errors) < 2e-4 * case.factor, errors


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_equal_inputs_give_equal_bits():
    case = LARGE["ImageNet"]
    inputs, mask = inputs_of(case, "cuda")
    once, again = (results(separable_attention, inputs, mask, case.batch) for _ in range(2))
    assert all(torch.equal(part, other) for part, other in zip(once, again, strict=True))


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, int]]]:
    pytest.importorskip("triton.backends.nvidia", reason="triton without its CUDA backend")
    with tempfile.TemporaryDirectory() as cache:
        return in_its_own_process("compile_for_h100", TRITON_CACHE_DIR=cache)


def compile_for_h100() -> dict[str, list[dict[str, int]]]:
    """Registers of a thread, and bytes that do not fit them, of the kernels of two large cases."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from perceiver_model.attention import separable_triton

    class H100:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    needs: list[dict[str, int]] = []
    launch = JITFunction.run

    def compile_only(kernel, *arguments, warmup, **options):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            launch(kernel, *arguments, warmup=True, **options)
        report = output.getvalue()
        registers = int(re.search(r"Used (\d+) registers", report).group(1))
        spilled = int(re.search(r"(\d+) bytes spill stores", report).group(1))
        needs.append({"registers": registers, "spilled": spilled})

    triton.knobs.nvidia.dump_ptxas_log = True
    driver.set_active(H100())
    JITFunction.run = compile_only
    for name in ("ImageNet", "stem"):
        inputs, mask = inputs_of(LARGE[name], "cpu")
        inputs = [tensor.detach() for tensor in inputs]
        *sums, log_sums = separable_triton.attention(*inputs, mask)
        separable_triton.attention_backward(*sums, *inputs, mask, log_sums, log_sums, True)
    return {"ImageNet": needs[:4], "stem": needs[4:]}


@pytest.mark.parametrize("name", ["ImageNet", "stem"])
def test_all_that_a_call_launches_compiles_for_an_h100(compiled, name):
    # Two kernels forward and two backward; a few numbers of many channels may wait in memory.
    assert len(compiled[name]) == 4
    assert all(kernel["spilled"] <= 64 for kernel in compiled[name])


def test_of_pixels_nothing_waits_in_memory_on_an_h100(compiled):
    assert [kernel["spilled"] for kernel in compiled["ImageNet"]] == [0, 0, 0, 0]


def test_float32_of_few_channels_is_fused_on_gpus_that_triton_knows(monkeypatch):
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    pixels = torch.zeros(2, 4, 3)
    assert module._fused(pixels).__name__ == "perceiver_model.attention.separable_triton"
    assert module._fused(pixels.double()) is None
    assert module._fused(torch.zeros(2, 4, 768)) is None
    assert module._fused(torch.zeros(2, 4, 0)) is None
    capability = (7, 5)
    assert module._fused(pixels) is None


def test_a_cpu_needs_no_triton():
    program = """
import sys, torch
from perceiver_model.attention.separable import separable_attention
shapes = (1, 1, 2, 3), (1, 1, 2, 4), (1, 1, 2, 5), (1, 20, 3), (1, 20)
inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
sum(part.sum() for part in separable_attention(*inputs)).backward()
assert "perceiver_model.attention.separable_triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
