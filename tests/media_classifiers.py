"""Small classifiers of video, feature maps, points and rows, their inputs; checks of any one."""

import math

import safetensors.torch
import torch

from perceiver_model import PerceiverClassifier
from perceiver_model.adapters.build import build_adapter
from perceiver_model.adapters.configs import (
    ColumnsConfig,
    FeatureMapInput,
    PixelsConfig,
    PointsConfig,
    PointsInput,
    SpaceTimePatchesConfig,
    TableInput,
    VideoInput,
)
from perceiver_model.adapters.table import TableRows
from perceiver_model.config import EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.families.classifier_config import ClassifierConfig

VIDEO = VideoInput(num_frames=4, height=4, width=6, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
FEATURES = FeatureMapInput(height=3, width=5, channels=4)
POINTS = PointsInput(num_points=10, num_features=2)
TABLE = TableInput(num_numeric=2, mean=(10.0, -1.0), std=(4.0, 0.5), num_categories=(3, 2))
PATCHES = SpaceTimePatchesConfig(num_frames=2, height=2, width=3)
ENCODER = EncoderConfig(
    num_latents=8,
    latent_dim=32,
    num_blocks=2,
    num_cross_attends=2,
    num_self_attends=1,
    num_self_heads=4,
    latent_init_std=1.0,
)


def config_of(media, adapter, *, positions=None):
    return ClassifierConfig(
        input=media, adapter=adapter, positions=positions, encoder=ENCODER, num_classes=3
    )


CONFIGS = {
    "video-pixels": config_of(VIDEO, PixelsConfig(), positions=FourierConfig(num_bands=3)),
    "video-patches": config_of(VIDEO, PATCHES, positions=FourierConfig(num_bands=3)),
    "video-learned": config_of(VIDEO, PATCHES, positions=LearnedPositions(num_channels=8)),
    "feature-map": config_of(FEATURES, PixelsConfig(), positions=FourierConfig(num_bands=3)),
    "points": config_of(POINTS, PointsConfig(num_bands=3, max_resolution=8)),
    "table": config_of(TABLE, ColumnsConfig(num_channels=16)),
    "table-learned": config_of(TABLE, ColumnsConfig(num_channels=16, missing="learned")),
}
ROWS = TableRows(
    torch.tensor([[12.0, -0.5], [math.nan, 1.5], [math.nan, math.nan]]),
    torch.tensor([[2, 1], [-1, 0], [-1, -1]]),
)


def adapter_of(kind):
    torch.manual_seed(0)
    return build_adapter(CONFIGS[kind])


def classifier(kind):
    torch.manual_seed(0)
    return PerceiverClassifier(CONFIGS[kind]).eval()


def inputs_of(kind, size=2, *, seed=1):
    """Random inputs without missing values."""
    generator = torch.Generator().manual_seed(seed)
    media = CONFIGS[kind].input
    if isinstance(media, VideoInput):
        shape = (size, *media.grid, media.channels)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if isinstance(media, TableInput):
        numeric = 10 + 4 * torch.randn(size, media.num_numeric, generator=generator)
        columns = [
            torch.randint(0, count, (size,), generator=generator) for count in media.num_categories
        ]
        return TableRows(numeric, torch.stack(columns, dim=1))
    shape = media.grid if isinstance(media, FeatureMapInput) else (media.num_points,)
    return torch.randn(size, *shape, media.channels, generator=generator)


def mask_of(inputs, keep):
    """A mask of the inputs' shape that keeps each position with the probability `keep`."""
    if isinstance(inputs, TableRows):
        shape = (len(inputs.numeric), inputs.numeric.shape[1] + inputs.categorical.shape[1])
    else:
        shape = inputs.shape[:-1]
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) < keep


def select(inputs, index):
    if isinstance(inputs, TableRows):
        return TableRows(inputs.numeric[index], inputs.categorical[index])
    return inputs[index]


def assert_samples_do_not_touch_each_other(model, inputs):
    """Of two samples, and of three classes."""
    logits = model(inputs)
    assert logits.shape == (2, 3) and not torch.allclose(logits[0], logits[1], atol=1e-3)
    alone = torch.cat([model(select(inputs, slice(0, 1))), model(select(inputs, slice(1, 2)))])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def assert_finite_logits_and_gradients(model, logits):
    logits.square().sum().backward()
    assert logits.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def bfloat16_logits(model, inputs):
    """The logits of a module that is cast to bfloat16 by this, proven to be near those before."""
    expected = model(inputs)
    logits = model.bfloat16()(inputs)
    assert logits.dtype == torch.float32
    assert (logits - expected).norm() < 0.1 * expected.norm()
    return logits


def restored(model, config, folder):
    """Another model of the configuration, with the weights that a file in the folder kept."""
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    torch.manual_seed(3)
    other = PerceiverClassifier(config).eval()
    other.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return other
