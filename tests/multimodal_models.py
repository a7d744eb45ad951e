"""A small classifier and a small autoencoder of several modalities, and their inputs."""

import torch

from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ClassInput,
    ColumnsConfig,
    ImageInput,
    OneHotConfig,
    PatchesConfig,
    TableInput,
    TextInput,
    TokenEmbeddingConfig,
)
from perceiver_model.adapters.multimodal_config import Modality, MultimodalInput, PaddedModalities
from perceiver_model.adapters.table import TableRows
from perceiver_model.config import EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.families.autoencoder_config import AutoencoderConfig, GridOutput, VectorOutput
from perceiver_model.families.classifier_config import ClassifierConfig

ENCODER = EncoderConfig(
    num_latents=8,
    latent_dim=32,
    num_blocks=1,
    num_cross_attends=1,
    num_self_attends=2,
    num_self_heads=4,
    latent_init_std=1.0,
)
AUDIO = Modality(
    input=AudioInput(sample_rate=8_000, num_samples=60),
    adapter=ChunksConfig(chunk_size=10),
    positions=FourierConfig(num_bands=4),
)
IMAGE = Modality(
    input=ImageInput(height=8, width=6),
    adapter=PatchesConfig(patch_size=2),
    positions=LearnedPositions(num_channels=5, projected_channels=7),
)
TEXT = Modality(
    input=TextInput(max_length=9), adapter=TokenEmbeddingConfig(num_channels=8), positions=None
)
TABLE = Modality(
    input=TableInput(num_numeric=2), adapter=ColumnsConfig(num_channels=6), positions=None
)
LABEL = Modality(
    input=ClassInput(num_classes=3),
    adapter=OneHotConfig(),
    positions=None,
    mask_probability=0.5,
    masked_in_evaluation=True,
)
MEDIA = MultimodalInput(modalities={"audio": AUDIO, "image": IMAGE, "text": TEXT, "table": TABLE})


def classifier_config(padding="learned", **modalities):
    media = MultimodalInput(modalities=modalities) if modalities else MEDIA
    return ClassifierConfig(
        input=media,
        adapter=PaddedModalities(padding=padding),
        positions=None,
        encoder=ENCODER,
        num_classes=3,
    )


AUTOENCODER = AutoencoderConfig(
    input=MultimodalInput(modalities={"audio": AUDIO, "image": IMAGE, "label": LABEL}),
    encoder=ENCODER,
    outputs={
        "audio": GridOutput(grid=(6,), num_channels=10, positions=FourierConfig(num_bands=4)),
        "image": GridOutput(
            grid=(8, 6), num_channels=3, positions=FourierConfig(num_bands=4), spacing="ends"
        ),
        "depth": GridOutput(
            grid=(4, 3),
            num_channels=1,
            positions=LearnedPositions(num_channels=5, projected_channels=6),
        ),
        "label": VectorOutput(num_channels=3, query_channels=12),
    },
    decoded_channels=16,
)


def build(model_type, config):
    torch.manual_seed(0)
    return model_type(config).eval()


def inputs_for(*names, batch=2):
    generator = torch.Generator().manual_seed(1)
    every = {
        "audio": torch.rand(batch, 60, generator=generator) - 0.5,
        "image": torch.rand(batch, 8, 6, 3, generator=generator),
        "text": torch.randint(6, 262, (batch, 7), generator=generator),
        "table": TableRows(
            torch.randn(batch, 2, generator=generator), torch.zeros(batch, 0, dtype=torch.int64)
        ),
        "label": torch.randint(0, 3, (batch,), generator=generator),
    }
    return {name: every[name] for name in names or MEDIA.modalities}
