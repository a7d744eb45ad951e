"""A small model for `perceiver bench model`, and jobs that measure it."""

import dataclasses

from benchmarks.jobs import Job
from benchmarks.model import Options
from benchmarks.variants import as_transformers
from perceiver_model.adapters.configs import ConvStemConfig, ImageInput, PixelsConfig
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.families.classifier_config import ClassifierConfig

TINY = ClassifierConfig(
    input=ImageInput(height=32, width=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    adapter=PixelsConfig(),
    positions=FourierConfig(num_bands=64, max_resolution=(224, 224)),
    encoder=EncoderConfig(
        num_latents=8, latent_dim=32, num_blocks=2, num_cross_attends=1, num_self_attends=2
    ),
    decoder=DecoderConfig(),
    num_classes=10,
)
FAMILY = {
    "fourier": TINY,
    "learned": dataclasses.replace(
        TINY,
        adapter=PixelsConfig(num_channels=256),
        positions=LearnedPositions(),
        decoder=DecoderConfig(query_residual=False),
    ),
    "conv": dataclasses.replace(
        TINY,
        adapter=ConvStemConfig(),
        positions=FourierConfig(num_bands=64, max_resolution=(56, 56)),
    ),
}
OPTIONS = Options(
    name="tiny", config=as_transformers(TINY), peers=("transformers", "lucidrains"),
    compile=False, device="cpu", precision="float32", seconds=0.01,
)  # fmt: skip


def job(task, config=TINY, **fields):
    return Job(
        task=task, device="cpu", precision="float32", config=config.to_dict(), seconds=0, **fields
    )
