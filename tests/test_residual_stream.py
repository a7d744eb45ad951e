"""The residual stream in bfloat16: `training.precision` of `bf16`, beside `bf16_autocast`."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_steps import config as config
from test_bad_steps import trained
from torch import nn

from perceiver_model.attention.multi_head import SelfAttend
from perceiver_model.attention.residual import LayerNorm, ResidualStream, set_residual_dtype
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import DecoderConfig, EncoderConfig
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.autoregressive import PerceiverAR
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.perceiver import PerceiverEncoder
from pipeline.training.fingerprint import training_fingerprint
from pipeline.training.precision import compute_as, products_in
from shards import ShardSet

BF16 = torch.bfloat16
ULP = 2.0**-8
"""The largest relative error of a number that is rounded to bfloat16."""


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_a_norm_computes_mean_and_variance_in_float32(offset: float, device: str) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(256)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    tokens = (torch.randn(4, 9, 256) + offset).to(BF16)
    set_residual_dtype(norm, BF16)
    with torch.autocast(device, BF16):
        found = norm.to(device)(tokens.to(device)).cpu()
    norm.cpu()
    exact = nn.functional.layer_norm(
        tokens.double(), (256,), norm.weight.to(BF16).double(), norm.bias.to(BF16).double()
    )
    assert found.dtype == BF16
    assert (found.double() - exact).abs().max() <= 2 * ULP * exact.abs().max()


@pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("g++") is None,
    reason="inductor writes C++, and there is no compiler for it here",
)
def test_a_compiled_norm_is_the_same_to_rounding_and_is_kept_in_the_compilers_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters  # takes a second, which a collection need not spend

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    attend = SelfAttend(channels=32, num_heads=4)
    compute_as(attend, "bf16", "auto")
    latents = torch.randn(2, 8, 32)
    with torch.autocast("cpu", BF16):
        expected = attend(latents)
    counters.clear()
    for _ in range(2):
        torch.compiler.reset()
        with torch.autocast("cpu", BF16):
            found = torch.compile(attend)(latents)
        found.float().sum().backward()  # which is compiled only now
        assert found.dtype == BF16
        assert (found - expected).abs().max() <= 4 * ULP * expected.abs().max()
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert counters["aot_autograd"]["autograd_cache_bypass"] == 0


def test_a_norm_of_another_dtype_is_torchs_own() -> None:
    norm, own = LayerNorm(8), nn.LayerNorm(8)
    set_residual_dtype(norm, BF16)
    tokens = torch.randn(2, 3, 8)
    assert torch.equal(norm(tokens), own(tokens))


class Models:
    """A small encoder with its decoder, and a small autoregressive model."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = PerceiverEncoder(
            EncoderConfig(num_latents=8, latent_dim=32, num_blocks=2, num_cross_attends=2,
                          num_self_attends=2, num_self_heads=4, latent_init_std=1.0),
            input_channels=12,
        )  # fmt: skip
        self.decoder = PerceiverDecoder(
            DecoderConfig(num_heads=2), query_channels=16, latent_dim=32, output_channels=5
        )
        self.causal = PerceiverAR(
            ARConfig(vocab_size=11, max_length=12, num_latents=6, channels=32, num_heads=4,
                     dropout=0.0, num_self_attends=2)
        )  # fmt: skip
        assert self.causal.output is not None
        nn.init.normal_(self.causal.output.weight)  # it begins at 0
        self.whole = nn.ModuleList([self.encoder, self.decoder, self.causal])

    def outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(1)
        inputs = InputArray(torch.randn(3, 20, 12, generator=random))
        queries = torch.randn(1, 4, 16, generator=random)
        tokens = torch.randint(11, (3, 12), generator=random)
        return self.decoder(queries, self.encoder(inputs)), self.causal(tokens)


def test_every_attend_of_every_model_has_the_stream_in_bf16() -> None:
    models = Models()
    exact = models.outputs()
    seen: dict[str, set[torch.dtype]] = {}

    def watch(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [*(inputs if isinstance(module, nn.LayerNorm) else []),
                       output[0] if isinstance(output, tuple) else output]  # fmt: skip
            seen.setdefault(name, set()).update(tensor.dtype for tensor in tensors)

        module.register_forward_hook(note)

    norms = [each for each in models.whole.modules() if isinstance(each, nn.LayerNorm)]
    assert all(isinstance(each, LayerNorm) for each in norms)
    for name, module in models.whole.named_modules():
        if isinstance(module, ResidualStream | nn.LayerNorm):
            watch(name, module)
    with torch.autocast("cpu", BF16):
        autocast = models.outputs()
        before = copy.deepcopy(seen)
        seen.clear()
        compute_as(models.whole, "bf16", "auto")
        streamed = models.outputs()
        found = copy.deepcopy(seen)
        compute_as(models.whole, "bf16_autocast", "auto")
        again = models.outputs()
    compute_as(models.whole, "bf16", "auto")
    assert all(map(torch.equal, models.outputs(), exact))  # without autocast, it changes nothing
    of_inputs = {name for name in found if name.startswith("0.") and name.endswith("input_norm")}
    assert len(of_inputs) == 2  # the input array is no part of the stream
    others = {name: dtypes for name, dtypes in found.items() if name not in of_inputs}
    assert others == {name: {BF16} for name in others}
    assert torch.float32 in set().union(*before.values())
    for true, one, other, back in zip(exact, autocast, streamed, again, strict=True):
        assert (one - true).abs().max() < 0.05 * true.abs().max()
        assert (other - true).abs().max() < 0.05 * true.abs().max()
        assert torch.equal(one, back)


def saved_bytes(module: nn.Module, run: Callable[[], torch.Tensor]) -> int:
    """Return the bytes that the backward pass of a function needs, without parameters."""
    own = {each.untyped_storage().data_ptr() for each in module.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(found.values())


def test_the_stream_takes_half_of_the_memory_that_norms_and_sums_keep() -> None:
    attend = SelfAttend(channels=256, num_heads=4)
    latents = torch.randn(4, 64, 256, requires_grad=True)

    def run() -> torch.Tensor:
        with torch.autocast("cpu", BF16):
            return attend(latents)

    autocast = saved_bytes(attend, run)
    compute_as(attend, "bf16", "auto")
    streamed = saved_bytes(attend, run)
    stream = latents.numel() * 2
    assert streamed <= autocast - 2 * stream


def test_gradients_are_those_of_float32_to_the_rounding_of_bf16() -> None:
    models = Models()

    def gradients() -> torch.Tensor:
        models.whole.zero_grad()
        torch.stack([each.float().square().mean() for each in models.outputs()]).sum().backward()
        parts = [each.grad.flatten() for each in models.whole.parameters() if each.grad is not None]
        assert all(each.dtype == torch.float32 for each in parts)
        return torch.cat(parts)

    exact = gradients()
    compute_as(models.whole, "bf16", "auto")
    with torch.autocast("cpu", BF16):
        found = gradients()
    assert torch.nn.functional.cosine_similarity(exact, found, dim=0) > 0.999


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_training_keeps_weights_in_float32_and_learns_as_with_autocast(
    config: Callable[..., Any], tmp_path: Path, stage: int
) -> None:
    found = {
        precision: trained(config(zero_stage=stage, precision=precision), tmp_path / precision)
        for precision in ("float32", "bf16", "bf16_autocast")
    }
    losses = {name: last.state.metrics["train_loss"] for name, (last, _) in found.items()}
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bf16_autocast"] == pytest.approx(losses["float32"], rel=0.02)
    weights = [weights for _, weights in found.values()]
    assert all(each.dtype == torch.float32 for each in weights[1].values())
    names = [name for name in weights[0] if "latents" in name]
    assert all(not torch.equal(weights[1][name], weights[2][name]) for name in names)


def test_a_record_that_is_older_than_the_stream_means_autocast(
    config: Callable[..., Any],
) -> None:
    prints = {}
    for precision in ("bf16", "bf16_autocast"):
        chosen = config(precision=precision)
        shard_set = ShardSet.open(chosen.shards_folder)
        prints[precision] = training_fingerprint(chosen, shard_set)["training.precision"]
    assert prints == {"bf16": "bf16, residual stream too", "bf16_autocast": "bf16"}
    assert products_in("bf16") == products_in("bf16_autocast") == "bf16"
