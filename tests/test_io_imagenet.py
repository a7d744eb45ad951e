"""Perceiver IO's image classifiers: published figures, convolutional stem, learned positions."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from media_classifiers import restored
from transformers.models.perceiver.modeling_perceiver import Conv2DDownsample

from perceiver_model.adapters.configs import ConvStemConfig, ImageInput, PixelsConfig
from perceiver_model.adapters.stem import ConvStemAdapter, same_padding
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.presets import PRESETS
from perceiver_model.flops import forward_flops, num_parameters

ENCODER = EncoderConfig(
    num_latents=6, latent_dim=16, num_blocks=2, num_cross_attends=1, num_self_attends=1,
    num_self_heads=2, latent_init_std=1.0,
)  # fmt: skip
SIZES = [(224, 224), (16, 16), (17, 13), (5, 8)]


def config(**parts):
    parts = {"input": ImageInput(height=13, width=18, channels=3)} | parts
    return ClassifierConfig(encoder=ENCODER, decoder=DecoderConfig(), num_classes=4, **parts)


CONV = config(adapter=ConvStemConfig(num_channels=5), positions=FourierConfig(num_bands=3))
LEARNED = config(
    adapter=PixelsConfig(num_channels=7),
    positions=LearnedPositions(num_channels=6, projected_channels=9),
)


def classifier(config):
    torch.manual_seed(0)
    return PerceiverClassifier(config).eval()


def images(config, size=3):
    generator = torch.Generator().manual_seed(1)
    shape = (size, config.input.height, config.input.width, config.input.channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("io-imagenet-fourier", 48_440_627),
        ("io-imagenet-learned", 62_255_848),
        ("io-imagenet-conv", 48_646_522),
    ],
)
def test_published_parameter_counts(name, parameters):
    with torch.device("meta"):
        assert num_parameters(PerceiverClassifier(PRESETS[name])) == parameters


@pytest.mark.parametrize(
    ("name", "published"), [("io-imagenet-fourier", 407e9), ("io-imagenet-conv", 369e9)]
)
def test_published_flops(name, published):
    assert forward_flops(PRESETS[name]) == pytest.approx(published, rel=0.01)


def test_learned_positions_cost_more_than_published_for_their_tokens_are_wider():
    # Published as 407 G like the Fourier features' 261 channels; but the released model, of the
    # published number of parameters, has tokens of 512 channels and projects them.
    fourier = forward_flops(PRESETS["io-imagenet-fourier"])
    tokens, latents, latent_dim = 224 * 224, 512, 1024
    keys_and_values = 2 * 2 * tokens * (512**2 - 261**2)
    attention = 2 * 2 * latents * tokens * (512 - 261)
    queries_and_output = 2 * 2 * latents * latent_dim * (512 - 261)
    projections = 2 * tokens * (3 * 256 + 256 * 256)
    more = keys_and_values + attention + queries_and_output + projections
    assert forward_flops(PRESETS["io-imagenet-learned"]) == fourier + more
    assert fourier + more == pytest.approx(478e9, rel=0.001)


def test_an_unpadded_stem_has_transformers_number_of_tokens():
    same = PRESETS["io-imagenet-conv"]
    valid = dataclasses.replace(same, adapter=ConvStemConfig(padding="valid"))
    assert math.prod(same.token_grid) == 3_136 and math.prod(valid.token_grid) == 3_025


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_unpadded_stem_is_transformers(height, width):
    torch.manual_seed(0)
    theirs = Conv2DDownsample(in_channels=3, out_channels=4).eval()
    ours = ConvStemAdapter(
        ImageInput(height=height, width=width), ConvStemConfig(num_channels=4, padding="valid")
    ).eval()
    ours.conv.load_state_dict(theirs.conv.state_dict())
    pixels = torch.randn(2, height, width, 3)
    expected = theirs(pixels.permute(0, 3, 1, 2))
    content, _ = ours((pixels * 0.5) + 0.5)
    torch.testing.assert_close(content, expected.flatten(2).mT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_same_padding_centres_every_window_as_tensorflow_does(height, width):
    # TensorFlow's: of the padding that ceil(size / stride) windows need, the odd one comes after.
    for size in (height, width):
        for kernel in (7, 3):
            before, after = same_padding(size, kernel)
            needed = max((math.ceil(size / 2) - 1) * 2 + kernel - size, 0)
            assert before + after == needed and after - before == needed % 2
    adapter = ConvStemAdapter(
        ImageInput(height=height, width=width), ConvStemConfig(num_channels=4)
    )
    adapter.eval()
    pixels = torch.randn(1, height, width, 3)
    content, _ = adapter((pixels * 0.5) + 0.5)
    grid = content.view(math.ceil(height / 4), math.ceil(width / 4), 4)
    row, column = grid.shape[0] // 2, grid.shape[1] - 1
    expected = pooled_window(adapter, pixels[0], row, column)
    torch.testing.assert_close(grid[row, column], expected, rtol=1e-4, atol=1e-5)


def pooled_window(adapter, pixels, row, column):
    """One token of the stem, from the definition: the maximum over windows of a convolution."""
    height, width, _ = pixels.shape
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)

    def convolved(y, x):
        total = torch.zeros(adapter.conv.out_channels)
        for dy in range(7):
            for dx in range(7):
                at_y = 2 * y - same_padding(height, 7)[0] + dy
                at_x = 2 * x - same_padding(width, 7)[0] + dx
                if 0 <= at_y < height and 0 <= at_x < width:
                    total += adapter.conv.weight[:, :, dy, dx] @ pixels[at_y, at_x]
        return F.relu(total / (1 + adapter.norm.eps) ** 0.5)

    first = 2 * row - same_padding(rows, 3)[0], 2 * column - same_padding(columns, 3)[0]
    return torch.stack(
        [
            convolved(y, x)
            for y in range(first[0], first[0] + 3)
            for x in range(first[1], first[1] + 3)
            if 0 <= y < rows and 0 <= x < columns
        ]
    ).amax(dim=0)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_stem_tokens_that_see_a_valid_pixel_are_valid_and_the_rest_have_no_influence(padding):
    image = ImageInput(height=24, width=40)
    adapter = ConvStemAdapter(image, ConvStemConfig(num_channels=4, padding=padding)).eval()
    mask = torch.zeros(1, 24, 40, dtype=torch.bool)
    mask[:, :7, :9] = True
    pixels = torch.rand(1, 24, 40, 3)
    changed = torch.where(mask.unsqueeze(-1), pixels, 1 - pixels)
    content, valid = adapter(pixels, mask)
    torch.testing.assert_close(adapter(changed, mask)[0], content, rtol=0, atol=0)
    # A token is a maximum over 3 × 3 windows of 7 × 7 pixels, 2 apart: 11 pixels, 4 apart.
    first = -2 if padding == "same" else -3
    rows, columns = config(input=image, adapter=ConvStemConfig(padding=padding)).token_grid
    expected = torch.tensor(
        [[4 * y + first < 7 and 4 * x + first < 9 for x in range(columns)] for y in range(rows)]
    )
    assert torch.equal(valid.view(rows, columns), expected) and not expected.all()
    everywhere = torch.ones_like(mask)
    assert adapter(pixels, everywhere)[1].all()


def test_batch_norm_follows_the_batch_in_training_and_its_running_statistics_after():
    model, batch = classifier(CONV), images(CONV)
    alone = model(batch[:1])
    torch.testing.assert_close(model(batch)[:1], alone, rtol=1e-4, atol=1e-4)
    model.train()
    assert not torch.allclose(model(batch)[:1], model(batch[:1]), atol=1e-3)
    model.eval()
    assert not torch.allclose(model(batch[:1]), alone, atol=1e-4)
    buffers = {name for name, _ in model.named_buffers() if name in model.state_dict()}
    names = {"running_mean", "running_var", "num_batches_tracked"}
    assert buffers == {f"adapter.norm.{name}" for name in names}


def test_group_norm_treats_a_sample_alike_in_any_batch_and_has_no_running_statistics():
    adapter = ConvStemConfig(num_channels=5, norm="group")
    model = classifier(dataclasses.replace(CONV, adapter=adapter)).train()
    batch = images(CONV)
    torch.testing.assert_close(model(batch)[:1], model(batch[:1]), rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("config", [CONV, LEARNED], ids=["conv", "learned"])
@pytest.mark.parametrize("path", ["factored", "separable", "auto"])
def test_every_attention_path_gives_the_same_logits(config, path):
    model, batch = classifier(config), images(config)
    mask = torch.ones(batch.shape[:3], dtype=torch.bool)
    mask[1, 4:], mask[2] = False, False
    set_attention_path(model, "reference")
    expected = model(batch, mask)
    set_attention_path(model, path)
    torch.testing.assert_close(model(batch, mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [CONV, LEARNED], ids=["conv", "learned"])
def test_what_comes_before_the_encoder_learns(config):
    model, batch = classifier(config).train(), images(config)
    model(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("adapter.", "positions.", "head.query")):
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("config", [CONV, LEARNED], ids=["conv", "learned"])
def test_weights_and_running_statistics_survive_safetensors(config, tmp_path):
    model, batch = classifier(config).train(), images(config)
    model(batch)
    model.eval()
    again = restored(model, config, tmp_path)
    torch.testing.assert_close(again(batch), model(batch), rtol=0, atol=0)


def test_projected_pixels_are_a_one_by_one_convolution_of_the_standardised_image():
    model, batch = classifier(LEARNED), images(LEARNED)
    assert LEARNED.content_channels == 7 and LEARNED.input_channels == 7 + 9
    project = model.adapter.project
    convolved = F.conv2d(
        (batch.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5,
        project.weight[:, :, None, None],
        project.bias,
    )
    content = model.input_array(batch).content
    torch.testing.assert_close(content, convolved.flatten(2).mT, rtol=1e-5, atol=1e-5)


def test_learned_positions_tell_pixels_apart():
    model, batch = classifier(LEARNED), images(LEARNED)
    with torch.no_grad():
        model.positions.table.normal_()
    flipped = batch.flip(2)
    assert not torch.allclose(model(batch), model(flipped), atol=1e-3)
    with torch.no_grad():
        model.positions.table.zero_()
    torch.testing.assert_close(model(batch), model(flipped), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [CONV, LEARNED], ids=["conv", "learned"])
def test_compiles_into_one_graph(config):
    model, batch = classifier(config), images(config)
    mask = torch.ones(batch.shape[:3], dtype=torch.bool)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(batch, mask), model(batch, mask))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ConvStemConfig(padding="full"),
            "padding is 'full'; must be 'same' or 'valid'",
        ),
        (lambda: ConvStemConfig(norm="layer"), "norm is 'layer'; must be 'batch' or 'group'"),
        (
            lambda: ConvStemConfig(num_channels=0),
            "num_channels is 0; must be greater than or equal to 1",
        ),
        (
            lambda: PixelsConfig(num_channels=0),
            "num_channels is 0; must be greater than or equal to 1",
        ),
        (
            lambda: config(
                input=ImageInput(height=4, width=9), adapter=ConvStemConfig(padding="valid")
            ),
            "padding is 'valid'; must be same for an image below 5 × 5, such as 4 × 9",
        ),
    ],
)
def test_a_bad_field_is_refused_by_name_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
