"""The classifier as a whole: invariances of the architecture, precision, saving, learning."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from media_classifiers import (
    assert_finite_logits_and_gradients,
    assert_samples_do_not_touch_each_other,
    bfloat16_logits,
    restored,
)

from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ConvConfig,
    ImageInput,
    MelConfig,
    PatchesConfig,
    PixelsConfig,
)
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import EncoderConfig, FourierConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.fourier import position_table

IMAGE = ImageInput(height=8, width=6, channels=2)
AUDIO = AudioInput(sample_rate=8_000, num_samples=1_000)
ENCODER = EncoderConfig(
    num_latents=8,
    latent_dim=32,
    num_blocks=3,
    num_cross_attends=3,
    num_self_attends=2,
    num_self_heads=4,
    latent_init_std=1.0,
)
CONFIGS = {
    adapter.kind: ClassifierConfig(
        input=media,
        adapter=adapter,
        positions=FourierConfig(num_bands=4),
        encoder=ENCODER,
        num_classes=3,
    )
    for media, adapter in [
        (IMAGE, PixelsConfig()),
        (IMAGE, PatchesConfig(patch_size=2)),
        (IMAGE, ConvConfig(num_channels=4)),
        (AUDIO, ChunksConfig(chunk_size=64)),
        (AUDIO, MelConfig(num_mels=8)),
    ]
}


def classifier(kind, positions=None):
    torch.manual_seed(0)
    return PerceiverClassifier(CONFIGS[kind], positions).eval()


def batch_of(kind, size=2):
    generator = torch.Generator().manual_seed(1)
    if isinstance(CONFIGS[kind].input, ImageInput):
        return torch.randint(0, 256, (size, 8, 6, 2), dtype=torch.uint8, generator=generator)
    return torch.rand(size, 1_000, generator=generator) - 0.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_samples_in_a_batch_do_not_touch_each_other(kind):
    assert_samples_do_not_touch_each_other(classifier(kind), batch_of(kind))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mask_of_all_true_equals_no_mask(kind):
    model, inputs = classifier(kind), batch_of(kind)
    mask = torch.ones(inputs.shape[:3] if inputs.ndim == 4 else inputs.shape, dtype=torch.bool)
    torch.testing.assert_close(model(inputs, mask), model(inputs), rtol=1e-4, atol=1e-4)


def test_chunks_of_padding_change_nothing():
    model, samples = classifier("chunks"), batch_of("chunks")
    mask = (torch.arange(1_000) < 640).expand(2, -1)
    (positions,) = model.positions()
    inputs = InputArray(samples[:, :640].unflatten(1, (10, 64)), (positions[:10],))
    alone = model.head(model.encoder(inputs))
    torch.testing.assert_close(model(samples, mask), alone, rtol=1e-4, atol=1e-4)


def test_a_sample_without_valid_input_has_finite_logits_and_gradients():
    model, samples = classifier("mel"), batch_of("mel")
    mask = torch.tensor([[True], [False]]).expand(2, 1_000)
    assert_finite_logits_and_gradients(model, model(samples, mask))


def test_permuting_pixels_with_their_positions_changes_nothing():
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    config, images = CONFIGS["pixels"], batch_of("pixels")
    permuted = images.flatten(1, 2)[:, order].view_as(images)
    table = position_table(config.token_grid, config.positions.num_bands, config.max_resolution)
    model, permuted_model = classifier("pixels"), classifier("pixels", table[order])
    torch.testing.assert_close(permuted_model(permuted), model(images), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(permuted), model(images), atol=1e-3)


def test_a_position_table_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"positions of shape \[47, 18\]: .* = \[48, 18\]"):
        PerceiverClassifier(CONFIGS["pixels"], torch.zeros(47, 18))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_module_cast_to_bfloat16_gives_nearly_the_same_logits_and_gradients(kind):
    model = classifier(kind)
    bfloat16_logits(model, batch_of(kind)).sum().backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in model.parameters())


def test_autocast_runs_and_gives_float32_logits():
    model, images = classifier("conv"), batch_of("conv")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.float32
    assert (logits - model(images)).norm() < 0.1 * logits.norm()


def test_dropout_acts_in_training_only():
    config = dataclasses.replace(
        CONFIGS["pixels"], encoder=dataclasses.replace(ENCODER, dropout=0.5)
    )
    model, images = PerceiverClassifier(config), batch_of("pixels")
    assert not torch.equal(model(images), model(images))
    model.eval()
    torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_survive_safetensors(kind, tmp_path):
    model, inputs = classifier(kind), batch_of(kind)
    again = restored(model, CONFIGS[kind], tmp_path)
    torch.testing.assert_close(again(inputs), model(inputs), rtol=0, atol=0)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_compiles_into_one_graph(kind):
    model, inputs = classifier(kind), batch_of(kind)
    mask = torch.ones(inputs.shape[:3], dtype=torch.bool)
    mask[:, -3:] = False
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(inputs, mask), model(inputs, mask))


@pytest.mark.parametrize("kind", ["patches", "conv"])
def test_learns_which_third_of_the_image_is_bright(kind):
    torch.manual_seed(0)
    model = PerceiverClassifier(CONFIGS[kind])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch(size):
        labels = torch.randint(0, 3, (size,))
        bright = torch.arange(6) // 2 == labels[:, None]
        images = 0.4 * bright[:, None, :, None] + 0.6 * torch.rand(size, 8, 6, 2)
        return images, labels

    for _ in range(60):
        images, labels = batch(32)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = batch(300)
    assert (model(images).argmax(dim=-1) == labels).float().mean() > 0.9
