"""A Perceiver under DeepSpeed: every ZeRO stage and attention path trains it like plain torch."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import join_ranks, run_ranks
from whole_state import gather_state

from cluster.deepspeed_engine import initialize_engine
from cluster.strategy import Strategy
from perceiver_model import (
    ClassifierConfig,
    ConvConfig,
    EncoderConfig,
    FourierConfig,
    ImageInput,
    PerceiverClassifier,
)
from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.config import DecoderConfig

BATCH, STEPS = 4, 3
CASES = [(stage, path) for stage in (0, 1, 2, 3) for path in ("fused", "factored", "separable")]
CONFIG = ClassifierConfig(
    input=ImageInput(height=6, width=8),
    adapter=ConvConfig(num_channels=5),
    positions=FourierConfig(num_bands=3),
    encoder=EncoderConfig(
        num_latents=5, latent_dim=12, num_blocks=3, num_cross_attends=3, num_self_attends=1,
        num_self_heads=2, latent_init_std=1.0,
    ),
    decoder=DecoderConfig(),
    num_classes=3,
)  # fmt: skip


def build(path):
    torch.manual_seed(0)
    model = PerceiverClassifier(CONFIG)
    set_attention_path(model, path)
    # The keys' biases have no gradient but rounding, which a small eps would make a step of.
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)


def data(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 6, 8, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 3, (BATCH,), generator=generator)


def rank_process(rank, folder):
    join_ranks(rank, 2, folder)
    part = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    results = {}
    for stage, path in CASES:
        strategy = Strategy(
            world_size=2, zero_stage=stage, micro_batch_size=BATCH // 2,
            gradient_accumulation_steps=1, gradient_clipping=0.0, precision="float32", device="cpu",
        )  # fmt: skip
        engine = initialize_engine(*build(path), strategy, gathered_whole=[CrossAttend])
        for step in range(STEPS):
            images, targets = (tensor[part] for tensor in data(step))
            engine.backward(F.cross_entropy(engine(images), targets))
            engine.step()
        results[stage, path] = gather_state(engine)[0]
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perceivers")
    run_ranks(rank_process, (str(folder),), 2)
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize(("stage", "path"), CASES)
def test_steps_on_two_ranks_equal_plain_torch_on_the_whole_batch(results, stage, path):
    model, optimizer = build("reference")
    for step in range(STEPS):
        images, targets = data(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
    for name, weights in model.named_parameters():
        torch.testing.assert_close(results[stage, path][name], weights, rtol=0, atol=1e-5)
