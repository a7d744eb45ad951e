"""Dense prediction and output queries: positions, resolutions, parts of the output, learning."""

import json
import math

import pydantic
import pytest
import torch
import torch.nn.functional as F
from multimodal_models import ENCODER
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ConvConfig,
    ImageInput,
    PatchesConfig,
    PixelsConfig,
)
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import DecoderConfig, FourierConfig, LearnedPositions
from perceiver_model.families.dense import DensePredictor
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.flops import forward_flops
from perceiver_model.fourier import fourier_features, grid_positions, position_table
from perceiver_model.output_queries import (
    LearnedQueries,
    OutputPositions,
    index_parts,
    nearest_tokens,
    positions_at,
    tokens_at,
)

PARTS = {
    "input": ImageInput(height=8, width=6),
    "adapter": PatchesConfig(patch_size=2),
    "positions": FourierConfig(num_bands=4),
    "encoder": ENCODER,
    "output_channels": 5,
    "query_positions": FourierConfig(num_bands=6),
}
CONFIGS = {
    "patches": DenseConfig(**PARTS),
    "patches with tokens": DenseConfig(**PARTS, query_tokens=True),
    "pixels": DenseConfig(**PARTS | {"adapter": PixelsConfig(), "output_grid": (3, 5)}),
    "conv, learned queries": DenseConfig(
        **PARTS
        | {
            "adapter": ConvConfig(num_channels=4),
            "query_positions": LearnedPositions(num_channels=7, projected_channels=9),
        }
    ),
    "sound": DenseConfig(
        **PARTS
        | {
            "input": AudioInput(sample_rate=8_000, num_samples=96),
            "adapter": ChunksConfig(chunk_size=8),
            "output_grid": (24,),
            "query_tokens": True,
        }
    ),
}


def predictor(config):
    torch.manual_seed(0)
    return DensePredictor(config).eval()


def batch_of(config, size=2):
    generator = torch.Generator().manual_seed(1)
    if isinstance(config.input, AudioInput):
        return torch.rand(size, config.input.num_samples, generator=generator) - 0.5
    return torch.rand(size, *config.input.grid, config.input.channels, generator=generator)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_output_is_the_same_alone_in_parts_and_for_each_sample(config):
    model, inputs = predictor(config), batch_of(config)
    outputs = model(inputs)
    assert outputs.shape == (2, *config.outputs, 5) and outputs.dtype == torch.float32
    flat = outputs.flatten(1, -2)
    assert flat.std(dim=1).min() > 1e-3 and not torch.allclose(flat[0], flat[1], atol=1e-3)
    torch.testing.assert_close(model(inputs, chunk_size=7), outputs)
    shared = torch.tensor([11, 0, 3])
    torch.testing.assert_close(model(inputs, indices=shared), flat[:, shared])
    own = torch.tensor([[2, 1], [4, 9]])
    expected = torch.stack([flat[0, own[0]], flat[1, own[1]]])
    torch.testing.assert_close(model(inputs, indices=own), expected)


def test_the_query_of_an_output_holds_the_fourier_features_of_its_position():
    config = CONFIGS["patches"]
    model = predictor(config)
    seen = []
    model.decoder.cross_attend.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch_of(config))
    table = position_table((8, 6), 6, (8, 6))
    torch.testing.assert_close(seen[0], table.unsqueeze(0), rtol=0, atol=1e-6)


def test_a_query_with_tokens_begins_with_the_content_of_the_token_at_its_place():
    config = CONFIGS["patches with tokens"]
    model, images = predictor(config), batch_of(config)
    seen = []
    model.decoder.cross_attend.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    queries = seen[0].unflatten(1, (8, 6))
    patch = (2 * images[1, 4:6, 2:4] - 1).flatten()
    for row, column in [(4, 2), (4, 3), (5, 2), (5, 3)]:
        torch.testing.assert_close(queries[1, row, column, :12], patch)
    assert not torch.allclose(queries[1, 6, 3, :12], patch)


def test_another_resolution_asks_for_positions_between_the_trained_ones():
    config = CONFIGS["patches"]
    model, images = predictor(config), batch_of(config)
    fine = model(images, output_grid=(15, 11))
    assert fine.shape == (2, 15, 11, 5)
    # 15 and 11 positions from -1 to 1 hold the 8 and 6 of training as every second one.
    torch.testing.assert_close(fine[:, ::2, ::2], model(images))


def test_masked_pixels_are_not_read():
    config = CONFIGS["patches with tokens"]
    model, images = predictor(config), batch_of(config)
    mask = torch.ones(2, 8, 6, dtype=torch.bool)
    mask[:, 4:] = False
    changed = torch.where(mask.unsqueeze(-1), images, 1 - images)
    torch.testing.assert_close(model(changed, mask), model(images, mask), rtol=0, atol=0)
    attended = model.input_array(images, mask).mask
    assert attended.view(2, 4, 3).all(dim=2).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_flops_are_those_of_the_plain_algorithm(config):
    model = predictor(config)
    set_attention_path(model, "reference")
    with FlopCounterMode(display=False) as counter:
        model(batch_of(config, size=1))
    assert forward_flops(config) == counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert DenseConfig.from_dict(values) == config
    assert pydantic.TypeAdapter(DenseConfig).validate_json(json.dumps(values)) == config


def test_bfloat16_and_autocast_give_nearly_the_same_in_float32():
    config = CONFIGS["patches with tokens"]
    model, images = predictor(config), batch_of(config)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)
    cast = model.bfloat16()(images)
    for outputs in (mixed, cast):
        assert outputs.dtype == torch.float32
        assert (outputs - expected).norm() < 0.1 * expected.norm()


def test_compiles_into_one_graph():
    config = CONFIGS["patches with tokens"]
    model, images = predictor(config), batch_of(config)
    indices = torch.tensor([[3, 9], [4, 47]])
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(images, indices=indices), model(images, indices=indices))


def test_learns_to_segment_from_a_few_outputs_of_each_sample():
    torch.manual_seed(0)
    config = DenseConfig(
        **PARTS | {"adapter": PixelsConfig(), "output_channels": 2, "query_tokens": True}
    )
    model = DensePredictor(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch(size):
        # Bright pixels are foreground where the image as a whole is dark, and the other way round.
        images = torch.rand(size, 8, 6, 1).round() * 0.4 + 0.6 * torch.rand(size, 1, 1, 1).round()
        dark = images.mean(dim=(1, 2, 3), keepdim=True) < 0.5
        bright = images > images.mean(dim=(1, 2, 3), keepdim=True)
        return images.expand(-1, -1, -1, 3), (bright == dark).squeeze(-1).long()

    for _ in range(40):
        images, labels = batch(16)
        indices = torch.randint(0, 48, (16, 16))
        logits = model(images, indices=indices)
        optimizer.zero_grad()
        F.cross_entropy(logits.mT, labels.flatten(1).gather(1, indices)).backward()
        optimizer.step()
    images, labels = batch(64)
    assert (model(images).argmax(dim=-1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output_channels": 0}, "output_channels is 0; must be greater than or equal to 1"),
        ({"output_grid": (4, 0)}, r"output_grid.1 is 0; must be greater than or equal to 1"),
        ({"output_grid": (4,), "query_tokens": True}, "query_tokens is True; must be False: .* 1 "),
        (
            {"input": AudioInput(sample_rate=8, num_samples=8), "adapter": ChunksConfig()},
            "output_grid is None; must be given: audio has no grid",
        ),
        ({"query_positions": FourierConfig(max_resolution=(3,))}, "a tuple of 2 number"),
        ({"decoder": DecoderConfig(num_heads=5)}, "num_heads is 5; .* the latents' 32 channels"),
        (
            {"adapter": ChunksConfig()},
            "adapter is Chunks.*; must be pixels, patches, conv, conv_stem or backbone",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DenseConfig(**PARTS | values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_grid": (8,)}, r"output grid \(8,\): expected 2 sizes of at least 1"),
        ({"indices": torch.tensor([48])}, "indices from 48 to 48: there are 48 outputs"),
        ({"indices": torch.tensor([-1, 3])}, "indices from -1 to 3: there are 48 outputs"),
        ({"indices": torch.tensor([1.0])}, "dtype torch.float32: expected torch.int64"),
        ({"indices": torch.zeros(3, 2).long()}, r"of shape \[3, 2\].*\[outputs\] or \[2, outputs"),
        ({"indices": torch.zeros(0).long()}, "indices: empty; expected at least one"),
        ({"chunk_size": 0}, "chunk_size 0: must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    config = CONFIGS["patches"]
    with pytest.raises(ValueError, match=message):
        predictor(config)(batch_of(config), **arguments)


def test_learned_positions_have_no_other_resolution():
    config = CONFIGS["conv, learned queries"]
    with pytest.raises(ValueError, match=r"\(4, 4\): positions are learned for \(8, 6\) only"):
        predictor(config)(batch_of(config), output_grid=(4, 4))


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("spacing", ["ends", "steps"])
def test_axis_tables_hold_the_features_of_every_position(grid, spacing):
    resolution = tuple(float(size + 3) for size in grid)
    positions = OutputPositions(
        FourierConfig(num_bands=5, max_resolution=resolution), grid, spacing
    )
    features = positions_at(positions(), torch.arange(math.prod(grid)))
    expected = grid_positions(grid)
    if spacing == "steps":
        sizes = torch.tensor(grid, dtype=torch.float64)
        numbers = torch.stack(torch.unravel_index(torch.arange(math.prod(grid)), grid), dim=-1)
        expected = -1 + 2 * numbers / sizes
    expected = fourier_features(expected.reshape(-1, len(grid)), 5, resolution)
    torch.testing.assert_close(features[0], expected, rtol=0, atol=1e-6)


def test_positions_of_a_huge_output_need_no_table_of_it():
    positions = OutputPositions(FourierConfig(num_bands=64), (10_000, 10_000, 10_000))
    number = torch.tensor([123_456_789_012])
    features = positions_at(positions(), number)[0, 0]
    coordinates = -1 + 2 * torch.tensor([1234, 5678, 9012], dtype=torch.float64) / 9_999
    torch.testing.assert_close(features[:3], coordinates.float())


def test_input_tokens_as_queries_are_those_of_the_input_array():
    rows, columns = torch.zeros(2, 5), torch.zeros(3, 5)
    rows[:, :2], columns[:, 2:] = torch.rand(2, 2), torch.rand(3, 3)
    inputs = InputArray(torch.rand(2, 6, 4), (rows, columns))
    indices = torch.tensor([5, 0, 2])
    torch.testing.assert_close(tokens_at(inputs, indices), inputs.dense()[:, indices])
    own = torch.tensor([[5, 0], [1, 1]])
    expected = torch.stack([inputs.dense()[0, own[0]], inputs.dense()[1, own[1]]])
    torch.testing.assert_close(tokens_at(inputs, own), expected)
    content = InputArray(inputs.content)
    torch.testing.assert_close(tokens_at(content, indices), inputs.content[:, indices])


def test_learned_queries_are_one_vector_for_every_output():
    queries = LearnedQueries(5, 3)
    numbers = torch.tensor([[4, 0], [1, 1]])
    torch.testing.assert_close(queries(numbers[0])[0], queries.queries[[4, 0]])
    torch.testing.assert_close(queries(numbers), queries.queries[numbers])


def test_the_nearest_token_lies_where_the_output_does():
    nearest = nearest_tokens(torch.arange(24), (4, 6), (2, 3)).view(4, 6)
    assert nearest.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    assert nearest_tokens(torch.arange(6), (6,), (4,)).tolist() == [0, 0, 1, 2, 2, 3]


def test_queries_are_built_only_when_their_turn_comes():
    model = predictor(CONFIGS["patches"])
    decoded = []

    def queries():
        for part in index_parts(torch.arange(5), 2):
            decoded.append(len(part))
            yield positions_at(model.query_positions(), part)

    parts = model.decoder.decode_parts(queries(), torch.randn(2, 8, 32))
    assert next(parts).shape == (2, 2, 5) and decoded == [2]
    assert [part.shape[1] for part in parts] == [2, 1] and decoded == [2, 2, 1]
