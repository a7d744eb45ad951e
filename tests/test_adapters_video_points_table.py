"""Video, feature maps, points and table rows: their configurations and their tokens."""

import dataclasses
import json
import math

import pydantic
import pytest
import torch
from media_classifiers import (
    CONFIGS,
    FEATURES,
    PATCHES,
    POINTS,
    ROWS,
    TABLE,
    VIDEO,
    adapter_of,
    classifier,
    config_of,
    inputs_of,
    mask_of,
)

from perceiver_model import PerceiverClassifier
from perceiver_model.adapters.build import build_adapter
from perceiver_model.adapters.configs import (
    ChunksConfig,
    ColumnsConfig,
    FeatureMapInput,
    ImageInput,
    PatchesConfig,
    PixelsConfig,
    PointsConfig,
    PointsInput,
    SpaceTimePatchesConfig,
    TableInput,
    VideoInput,
)
from perceiver_model.adapters.points import to_unit_cube
from perceiver_model.adapters.table import TableRows
from perceiver_model.config import FourierConfig, LearnedPositions
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.presets import preset
from perceiver_model.fourier import axis_position_tables, fourier_features, position_table

# Configuration.


@pytest.mark.parametrize(
    ("config_type", "values", "message"),
    [
        (
            VideoInput,
            {"num_frames": 0, "height": 2, "width": 2},
            "num_frames is 0; must be greater than",
        ),
        (
            VideoInput,
            {"num_frames": 1, "height": 2, "width": 2, "std": (0.1, 0.2)},
            "std is .*1 or 3",
        ),
        (SpaceTimePatchesConfig, {"height": 0}, "height is 0; must be greater than or equal to 1"),
        (
            FeatureMapInput,
            {"height": 2, "width": 2, "channels": 0},
            "channels is 0; must be greater than",
        ),
        (PointsInput, {"num_points": 2, "num_features": -1}, "num_features is -1; .* equal to 0"),
        (
            PointsInput,
            {"num_points": 2, "unit_cube": "yes"},
            "unit_cube is 'yes'; must be a valid boolean",
        ),
        (PointsConfig, {"max_resolution": 0.0}, "max_resolution is 0.0; must be greater than 0"),
        (TableInput, {}, "num_numeric is 0; must be at least 1 where num_categories is empty"),
        (TableInput, {"num_numeric": 3, "mean": (1.0, 2.0)}, "mean is .*a tuple of 1 or 3"),
        (TableInput, {"num_numeric": 2, "std": (0.0,)}, "std.0 is .* greater than 0"),
        (TableInput, {"num_categories": (3, 0)}, r"num_categories.1 is 0; must be greater"),
        (TableInput, {"num_categories": 3}, "num_categories is 3; must be a valid tuple"),
        (
            ColumnsConfig,
            {"missing": "mean"},
            "missing is 'mean'; must be 'masked' or 'learned'",
        ),
        (FourierConfig, {"max_resolution": (1.0,) * 4}, "a tuple of 1 or 2 or 3 number"),
    ],
)
def test_a_bad_field_is_refused_by_name_and_value(config_type, values, message):
    with pytest.raises(ValueError, match=message):
        config_type(**values)


@pytest.mark.parametrize(
    ("media", "adapter", "positions", "message"),
    [
        (VIDEO, SpaceTimePatchesConfig(height=2, width=4), None, "width is 4; .* video's width, 6"),
        (
            VIDEO,
            SpaceTimePatchesConfig(num_frames=3, height=2, width=3),
            None,
            "video's num_frames, 4",
        ),
        (
            VIDEO,
            PatchesConfig(patch_size=2),
            None,
            "must be pixels or space_time_patches for video",
        ),
        (ImageInput(height=4, width=6), PATCHES, None, "must be pixels, patches.* for image"),
        (FEATURES, ChunksConfig(), None, "must be pixels or mel_conv for feature_map"),
        (POINTS, PixelsConfig(), None, "must be points for points"),
        (TABLE, PointsConfig(), None, "must be columns for table"),
        (
            POINTS,
            PointsConfig(),
            FourierConfig(),
            "positions is .*; must be None: points hold their own",
        ),
        (TABLE, ColumnsConfig(), LearnedPositions(), "must be None: columns hold their own"),
        (VIDEO, PixelsConfig(), FourierConfig(max_resolution=(8.0, 8.0)), "a tuple of 3 number"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(media, adapter, positions, message):
    with pytest.raises(ValueError, match=message):
        config_of(media, adapter, positions=positions)


@pytest.mark.parametrize(
    ("media", "adapter", "token_grid", "content_channels"),
    [
        (VIDEO, PixelsConfig(), (4, 4, 6), 3),
        (VIDEO, PATCHES, (2, 2, 2), 2 * 2 * 3 * 3),
        (FEATURES, PixelsConfig(), (3, 5), 4),
        (POINTS, PointsConfig(num_bands=5), (10,), 2 + 3 * 11),
        (TABLE, ColumnsConfig(num_channels=7), (4,), 7),
    ],
)
def test_token_grid_and_channels(media, adapter, token_grid, content_channels):
    config = config_of(media, adapter)
    assert config.token_grid == token_grid
    assert config.content_channels == config.input_channels == content_channels


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert ClassifierConfig.from_dict(values) == config
    assert pydantic.TypeAdapter(ClassifierConfig).validate_json(json.dumps(values)) == config


def test_presets_are_the_papers():
    video, audio, points = map(preset, ["audioset-video", "audioset-audio", "modelnet40"])
    assert math.prod(video.token_grid) == 12_544 and video.token_grid == (16, 28, 28)
    assert audio.token_grid == (480,) and audio.content_channels == 128
    for config, num_self_attends in [(video, 8), (audio, 8), (points, 6)]:
        assert config.encoder.cross_attends_before_block == (1, 1)
        assert config.encoder.num_self_attends == num_self_attends
    assert video.encoder.share_cross_attends == "none" and not video.encoder.share_self_attends
    assert points.adapter == PointsConfig(num_bands=64, max_resolution=2240)
    # The highest frequency on a line of positions from -1 to 1 is 1120, ten times ImageNet's 112.
    features = fourier_features(
        torch.tensor([[0.5 / 1120]]), points.adapter.num_bands, (points.adapter.max_resolution,)
    )
    assert features[0, 64].item() == pytest.approx(math.sin(math.pi / 2))


# Tokens.


@pytest.mark.parametrize("grid", [(5,), (4, 6), (2, 1, 3)])
def test_axis_tables_sum_to_the_position_table(grid):
    resolution = tuple(2.0 * size for size in grid)
    table = torch.zeros(1, 1)
    for axis_table in axis_position_tables(grid, 4, resolution):
        table = (table.unsqueeze(1) + axis_table).flatten(0, 1)
    torch.testing.assert_close(table, position_table(grid, 4, resolution), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["video-pixels", "video-patches"])
def test_uint8_and_floating_videos_agree(kind):
    adapter, videos = adapter_of(kind), inputs_of(kind)
    torch.testing.assert_close(adapter(videos)[0], adapter(videos / 255)[0])


def test_video_pixels_are_standardised_per_channel_in_row_major_order():
    videos = inputs_of("video-pixels")
    content, mask = adapter_of("video-pixels")(videos)
    assert content.shape == (2, 4 * 4 * 6, 3) and content.dtype == torch.float32 and mask is None
    expected = (videos[1, 3, 2, 5, 1].item() / 255 - 0.5) / 0.25
    assert content[1, (3 * 4 + 2) * 6 + 5, 1].item() == pytest.approx(expected)


def test_space_time_patches_hold_their_pixels_in_order():
    videos = inputs_of("video-pixels")
    pixels = adapter_of("video-pixels")(videos)[0].view(2, 4, 4, 6, 3)
    content, _ = adapter_of("video-patches")(videos)
    assert content.shape == (2, 8, 36)
    # Patch (1, 0, 1) covers frames 2 and 3, rows 0 and 1, columns 3 to 5.
    torch.testing.assert_close(content[1, 4 + 0 + 1], pixels[1, 2:4, 0:2, 3:6].flatten())


@pytest.mark.parametrize("kind", ["video-pixels", "video-patches"])
def test_a_mask_of_frames_is_one_of_all_their_pixels(kind):
    adapter, videos = adapter_of(kind), inputs_of(kind)
    frames = torch.tensor([[True, True, True, False], [True, False, False, False]])
    by_frame = adapter(videos, frames)
    by_pixel = adapter(videos, frames[..., None, None].expand(2, 4, 4, 6))
    torch.testing.assert_close(by_frame, by_pixel, rtol=0, atol=0)
    tokens_per_frame = {"video-pixels": 24, "video-patches": 4}[kind]
    valid_frames = {"video-pixels": [3, 1], "video-patches": [2, 1]}[kind]
    assert by_frame[1].sum(dim=1).tolist() == [count * tokens_per_frame for count in valid_frames]


def test_a_patch_is_valid_if_any_of_its_pixels_is():
    mask = torch.zeros(2, 4, 4, 6, dtype=torch.bool)
    mask[0, 3, 1, 4] = True
    content, token_mask = adapter_of("video-patches")(inputs_of("video-patches"), mask)
    assert token_mask[0].nonzero().flatten().tolist() == [5] and not token_mask[1].any()
    assert content[0, 5].count_nonzero() == 3 and content[1].count_nonzero() == 0


def test_feature_maps_are_read_as_they_are():
    for dtype in (torch.float64, torch.bfloat16):
        features = inputs_of("feature-map").to(dtype)
        content, mask = adapter_of("feature-map")(features)
        assert content.dtype == dtype and mask is None
        torch.testing.assert_close(content[1, 2 * 5 + 3], features[1, 2, 3], rtol=0, atol=0)


def test_gradients_reach_the_backbone_but_not_through_masked_cells():
    model = classifier("feature-map")
    features = inputs_of("feature-map").requires_grad_()
    mask = mask_of(features, 0.5)
    model(features, mask).square().sum().backward()
    reached = features.grad.abs().sum(dim=-1) > 0
    torch.testing.assert_close(reached, mask)


def test_points_have_the_fourier_features_of_their_own_coordinates():
    config = config_of(
        PointsInput(num_points=10, num_features=2, unit_cube=False),
        PointsConfig(num_bands=3, max_resolution=8),
    )
    points = inputs_of("points").tanh()
    content, mask = build_adapter(config)(points)
    assert content.shape == (2, 10, 2 + 3 * 7) and content.dtype == torch.float32 and mask is None
    expected = [*points[1, 4, 3:].tolist(), *points[1, 4, :3].tolist()]
    for function in (math.sin, math.cos):
        for coordinate in points[1, 4, :3].tolist():
            expected += [function(math.pi * band * coordinate) for band in (1.0, 2.5, 4.0)]
    torch.testing.assert_close(content[1, 4], torch.tensor(expected))


def test_the_unit_cube_is_reached_from_any_place_and_scale():
    clouds = torch.randn(3, 10, 3, generator=torch.Generator().manual_seed(0))
    moved = (clouds + torch.tensor([3.0, -2.0, 0.5])) * torch.tensor([0.01, 7, 300]).view(3, 1, 1)
    in_cube = to_unit_cube(clouds)
    torch.testing.assert_close(to_unit_cube(moved), in_cube, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(in_cube.mean(dim=1), torch.zeros(3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(in_cube.abs().amax(dim=(1, 2)), torch.ones(3))
    # Alike in all dimensions, so that shapes keep their proportions.
    torch.testing.assert_close(
        in_cube.std(dim=1) / in_cube.std(dim=1)[:, :1], clouds.std(dim=1) / clouds.std(dim=1)[:, :1]
    )


def test_padding_a_cloud_changes_no_point():
    points = inputs_of("points") + 5.0  # far from the origin, where padding lies
    padding = torch.full((2, 5, 5), math.nan)
    mask = torch.arange(15) < torch.tensor([[10], [10]])
    padded_config = config_of(dataclasses.replace(POINTS, num_points=15), CONFIGS["points"].adapter)
    alone, _ = adapter_of("points")(points)
    padded, token_mask = build_adapter(padded_config)(torch.cat([points, padding], dim=1), mask)
    torch.testing.assert_close(padded[:, :10], alone)
    assert token_mask is mask and padded[:, 10:].count_nonzero() == 0


@pytest.mark.parametrize("num_valid", [0, 1, 10])
def test_clouds_without_extent_are_finite(num_valid):
    mask = (torch.arange(10) < num_valid).expand(2, -1)
    points = torch.full((2, 10, 5), 3.25)
    content, _ = adapter_of("points")(points, mask)
    assert content.isfinite().all()
    assert content[:, :num_valid, 2:5].count_nonzero() == 0  # all points lie at their mean
    coordinates = torch.zeros(2, 10, 3, requires_grad=True)
    to_unit_cube(coordinates, mask).sum().backward()
    assert coordinates.grad.isfinite().all()


def test_column_tokens_follow_their_formula():
    adapter = adapter_of("table")
    content, mask = adapter(ROWS)
    assert content.shape == (3, 4, 16)
    assert mask.tolist() == [[True] * 4, [False, True, False, True], [False] * 4]
    torch.testing.assert_close(content[0, 0], 0.5 * adapter.numeric[0] + adapter.columns[0])
    torch.testing.assert_close(content[1, 1], 5.0 * adapter.numeric[1] + adapter.columns[1])
    # Embeddings: 3 categories and unknown of the first column, then 2 and unknown of the second.
    assert adapter.categories.shape == (7, 16)
    torch.testing.assert_close(content[0, 2], adapter.categories[2] + adapter.columns[2])
    torch.testing.assert_close(content[1, 3], adapter.categories[4 + 0] + adapter.columns[3])
    assert content[~mask].count_nonzero() == 0


@pytest.mark.parametrize("index", [3, 4, 1_000_000])
def test_categories_beyond_the_known_ones_are_all_the_unknown_one(index):
    adapter = adapter_of("table")
    content, mask = adapter(ROWS._replace(categorical=torch.tensor([[index, 2], [0, 0], [0, 0]])))
    assert mask[0].all()
    torch.testing.assert_close(content[0, 2], adapter.categories[3] + adapter.columns[2])
    torch.testing.assert_close(content[0, 3], adapter.categories[4 + 2] + adapter.columns[3])


def test_missing_values_can_have_a_learned_vector_in_their_place():
    adapter = adapter_of("table-learned")
    content, mask = adapter(ROWS)
    assert mask is None
    torch.testing.assert_close(content[2], adapter.missing + adapter.columns)
    torch.testing.assert_close(content[1, 1], 5.0 * adapter.numeric[1] + adapter.columns[1])


@pytest.mark.parametrize("kind", ["table", "table-learned"])
def test_a_masked_column_is_left_out_whatever_it_holds(kind):
    adapter = adapter_of(kind)
    mask = torch.tensor([[True, False, True, False]]).expand(3, -1)
    content, token_mask = adapter(ROWS, mask)
    assert not (token_mask & ~mask).any() and content[~token_mask].count_nonzero() == 0
    other = TableRows(
        torch.where(mask[:, :2], ROWS.numeric, math.inf),
        torch.where(mask[:, 2:], ROWS.categorical, 99),
    )
    other_content, other_mask = adapter(other, mask)
    torch.testing.assert_close(other_content, content, rtol=0, atol=0)
    torch.testing.assert_close(other_mask, token_mask)


def test_float64_values_are_standardised_before_they_are_rounded():
    seconds = TableInput(num_numeric=1, mean=(float(2**30),), std=(1.0,))
    adapter = build_adapter(config_of(seconds, ColumnsConfig(num_channels=2)))
    numeric = torch.tensor([[2**30 + 0.5]], dtype=torch.float64)
    content, _ = adapter(TableRows(numeric, torch.zeros(1, 0, dtype=torch.int64)))
    torch.testing.assert_close(content[0, 0], 0.5 * adapter.numeric[0] + adapter.columns[0])


@pytest.mark.parametrize(
    "table", [TableInput(num_numeric=2), TableInput(num_categories=(3, 2))], ids=["numeric", "cat"]
)
def test_tables_of_one_kind_of_column_have_no_empty_parameters(table):
    model = PerceiverClassifier(config_of(table, ColumnsConfig(num_channels=8)))
    rows = TableRows(
        torch.randn(2, table.num_numeric),
        torch.zeros(2, len(table.num_categories), dtype=torch.int64),
    )
    assert model(rows).shape == (2, 3)
    assert all(parameter.numel() for parameter in model.parameters())


EMPTY_MASK = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("kind", "inputs", "mask", "message"),
    [
        ("video-pixels", torch.zeros(2, 4, 3, 4, 6), None, r"expected \[batch, 4, 4, 6, 3\]"),
        ("video-patches", inputs_of("video-patches").long(), None, "expected torch.uint8 or float"),
        (
            "video-pixels",
            inputs_of("video-pixels"),
            torch.ones(2, 4, 4).bool(),
            r"mask of shape \[2, 4, 4\] .*\[2, 4\] or \[2, 4, 4, 6\]",
        ),
        ("video-pixels", inputs_of("video-pixels"), EMPTY_MASK, "dtype torch.float32: .*bool"),
        ("feature-map", torch.zeros(2, 4, 3, 5), None, r"expected \[batch, 3, 5, 4\]"),
        ("feature-map", torch.zeros(2, 3, 5, 4).int(), None, "torch.int32: expected floating"),
        ("points", torch.zeros(2, 10, 3), None, r"expected \[batch, 10, 5\]"),
        ("points", torch.zeros(2, 10, 5), torch.ones(2, 10, 5).bool(), r"shape \[2, 10\]"),
        ("table", ROWS.numeric, None, r"type Tensor: expected TableRows\(numeric, categorical\)"),
        ("table", ROWS._replace(numeric=torch.zeros(3, 3)), None, r"numeric .*\[batch, 2\]"),
        ("table", ROWS._replace(numeric=ROWS.numeric.int()), None, "numeric of dtype torch.int32"),
        ("table", ROWS._replace(categorical=torch.zeros(3, 1)), None, r"categorical.*\[batch, 2\]"),
        ("table", ROWS._replace(categorical=ROWS.categorical.int()), None, "expected torch.int64"),
        (
            "table",
            ROWS._replace(categorical=ROWS.categorical[:2]),
            None,
            "3 rows and categorical 2",
        ),
        ("table", ROWS, torch.ones(3, 2).bool(), r"mask of shape \[3, 2\].*\[3, 4\]"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(kind, inputs, mask, message):
    with pytest.raises(ValueError, match=message):
        adapter_of(kind)(inputs, mask)
