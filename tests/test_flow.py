"""Optical flow: DeepMind's function of the same weights, masks, tiles, learning."""

import dataclasses
import itertools
import json

import pydantic
import pytest
import torch
import torch.nn.functional as F
from multimodal_models import ENCODER
from torch.utils.flop_counter import FlopCounterMode
from transformers import PerceiverConfig, PerceiverForOpticalFlow
from transformers_models import SMALL_ENCODER, randomised

from perceiver_model.adapters.configs import VideoInput
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.config import DecoderConfig, FourierConfig, LearnedPositions
from perceiver_model.deepmind import (
    from_transformers_state,
    load_pretrained,
    save_pretrained,
    to_transformers_state,
)
from perceiver_model.families.flow import OpticalFlow, tiled_flow
from perceiver_model.families.flow_config import FlowConfig
from perceiver_model.families.presets import preset
from perceiver_model.flops import forward_flops, num_parameters

CONFIG = FlowConfig(
    input=VideoInput(num_frames=2, height=8, width=12),
    num_channels=10,
    positions=FourierConfig(num_bands=4),
    encoder=ENCODER,
)
SETTINGS = PerceiverConfig(**SMALL_ENCODER, train_size=[8, 12])


def frames_of(batch=2, height=8, width=12):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 2, height, width, 3, generator=generator)


def patches_of(frames):
    """transformers' inputs: 3 × 3 patches of frames in [-1, 1], zero outside of them."""
    height, width = frames.shape[2:4]
    padded = F.pad(2 * frames - 1, (0, 0, 1, 1, 1, 1))
    shifted = [
        padded[:, :, row : row + height, column : column + width]
        for row in range(3)
        for column in range(3)
    ]
    return torch.cat(shifted, dim=-1).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
def test_transformers_weights_give_transformers_flow(hidden_act):
    settings = PerceiverConfig(**SETTINGS.to_dict() | {"hidden_act": hidden_act})
    theirs = randomised(PerceiverForOpticalFlow(settings))
    ours = from_transformers_state(theirs.state_dict(), settings.to_dict(), fidelity="transformers")
    with torch.no_grad():
        expected = theirs(inputs=patches_of(frames_of())).logits
        flow = ours(frames_of())
    assert expected.abs().mean() > 0.01
    torch.testing.assert_close(flow, expected, rtol=0, atol=1e-5)


def test_our_weights_give_our_flow_in_transformers(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        num_channels=64,
        positions=FourierConfig(num_bands=64, precision="float32"),
        flow_scale=1.0,
    )
    ours = randomised(OpticalFlow(config))
    save_pretrained(ours, tmp_path)
    theirs = PerceiverForOpticalFlow.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = theirs(inputs=patches_of(frames_of())).logits
        torch.testing.assert_close(ours(frames_of()), expected, rtol=0, atol=1e-5)
    again = load_pretrained(tmp_path, fidelity="transformers")
    torch.testing.assert_close(again(frames_of()), ours(frames_of()), rtol=0, atol=0)


def test_deepminds_flow_is_in_pixels_and_its_gelu_by_tanh():
    theirs = randomised(PerceiverForOpticalFlow(SETTINGS))
    state, settings = theirs.state_dict(), SETTINGS.to_dict()
    ours = from_transformers_state(state, settings)
    as_theirs = from_transformers_state(state, settings, fidelity="transformers")
    assert ours.config.encoder.gelu == ours.config.decoder.gelu == "tanh"
    with torch.no_grad():
        difference = ours(frames_of()) / 20 - as_theirs(frames_of())
        assert 1e-6 < difference.abs().max() < 1e-2
    for name, tensor in to_transformers_state(ours).items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    assert set(to_transformers_state(ours)) == set(state)


def test_exporting_flow_in_pixels_asks_first(tmp_path):
    model = from_transformers_state(
        randomised(PerceiverForOpticalFlow(SETTINGS)).state_dict(), SETTINGS.to_dict()
    )
    with pytest.raises(ValueError, match=r"flow_scale = 20.0, not 1.0; allow_differences=True"):
        save_pretrained(model, tmp_path)
    save_pretrained(model, tmp_path, allow_differences=True)
    again = load_pretrained(tmp_path)
    torch.testing.assert_close(again(frames_of()), model(frames_of()), rtol=0, atol=0)


def test_what_transformers_does_not_have_is_not_exported():
    for change, message in [
        ({"rescale_factor": 50.0}, "rescale_factor = 50.0, not 100.0"),
        ({"num_channels": 10}, "num_channels = 10, not 64"),
        ({"positions": FourierConfig(num_bands=64, max_resolution=(9, 9))}, r"for the frames, \(8"),
    ]:
        values = {"num_channels": 64, "positions": FourierConfig(num_bands=64), "flow_scale": 1.0}
        model = OpticalFlow(dataclasses.replace(CONFIG, **values | change))
        with pytest.raises(ValueError, match=message):
            to_transformers_state(model)


def test_other_frame_sizes_keep_the_trained_frequencies():
    theirs = randomised(PerceiverForOpticalFlow(SETTINGS))
    model = from_transformers_state(theirs.state_dict(), SETTINGS.to_dict(), image_size=(10, 14))
    assert model.config.max_resolution == (8, 12)
    assert model(frames_of(height=10, width=14)).shape == (2, 10, 14, 2)


def test_the_preset_has_the_published_size():
    with torch.device("meta"):
        assert num_parameters(OpticalFlow(preset("io-flow"))) == 41_057_134
        settings = PerceiverConfig(
            num_latents=2048,
            d_latents=512,
            num_blocks=1,
            num_self_attends_per_block=24,
            num_self_attention_heads=16,
            num_cross_attention_heads=1,
        )
        assert num_parameters(PerceiverForOpticalFlow(settings)) == 41_057_134
    assert preset("io-flow").input_channels == 322


@pytest.mark.parametrize(
    "positions", [CONFIG.positions, LearnedPositions(num_channels=5, projected_channels=6)]
)
def test_flops_are_those_of_the_plain_algorithm(positions):
    config = dataclasses.replace(CONFIG, positions=positions)
    model = OpticalFlow(config).eval()
    set_attention_path(model, "reference")
    with FlopCounterMode(display=False) as counter:
        model(frames_of(batch=1))
    assert forward_flops(config) == counter.get_total_flops()


def test_training_starts_from_no_flow():
    torch.manual_seed(0)
    assert not OpticalFlow(CONFIG)(frames_of()).any()


@pytest.mark.parametrize("path", ["fused", "factored", "separable"])
def test_every_attention_path_gives_the_same_flow(path):
    model = randomised(OpticalFlow(CONFIG)).double()
    set_attention_path(model, "reference")
    expected = model(frames_of().double())
    set_attention_path(model, path)
    torch.testing.assert_close(model(frames_of().double()), expected)


def test_flow_decoded_in_parts_is_the_same():
    model = randomised(OpticalFlow(CONFIG))
    torch.testing.assert_close(model(frames_of(), chunk_size=17), model(frames_of()))


def test_uint8_frames_are_scaled():
    model = randomised(OpticalFlow(CONFIG))
    frames = (255 * frames_of()).byte()
    torch.testing.assert_close(model(frames), model(frames / 255), rtol=1e-4, atol=1e-5)


def test_padding_with_a_mask_changes_nothing():
    model = randomised(OpticalFlow(CONFIG))
    frames = frames_of()
    mask = torch.zeros(2, 2, 8, 12, dtype=torch.bool)
    mask[:, :, :6, :9] = True
    changed = torch.where(mask.unsqueeze(-1), frames, 1 - frames)
    flow = model(frames, mask)
    torch.testing.assert_close(model(changed, mask), flow, rtol=0, atol=0)
    assert not torch.allclose(model(frames)[:, :6, :9], flow[:, :6, :9], atol=1e-3)
    valid = model.input_array(frames, mask).mask.view(2, 8, 12)
    assert torch.equal(valid, mask[:, 0])


def test_bfloat16_gives_nearly_the_same_flow_in_float32():
    model = randomised(OpticalFlow(CONFIG))
    expected = model(frames_of())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(frames_of())
    for flow in (mixed, model.bfloat16()(frames_of())):
        assert flow.dtype == torch.float32
        assert (flow - expected).norm() < 0.2 * expected.norm()


def test_tiles_meet_where_they_overlap():
    model = randomised(OpticalFlow(CONFIG))
    frames = frames_of(height=13, width=20)
    with torch.no_grad():
        flow = tiled_flow(model, frames, min_overlap=3, chunk_size=50)
        assert flow.shape == (2, 13, 20, 2)
        # A corner lies in one tile only.
        corner = model(frames[:, :, 5:, 8:])
        torch.testing.assert_close(flow[:, 8:, 12:], corner[:, 3:, 4:])
        # Columns 8 to 11 of the first rows lie in two tiles, whose borders are 4 and 1 away.
        left, right = model(frames[:, :, :8, :12]), model(frames[:, :, :8, 8:])
        expected = (4 * left[:, 3, 8] + 1 * right[:, 3, 0]) / 5
        torch.testing.assert_close(flow[:, 3, 8], expected)
        exact = frames[:, :, :8, :12]
        torch.testing.assert_close(tiled_flow(model, exact, min_overlap=3), model(exact))
    assert tiled_flow(model.double(), frames.double(), min_overlap=3).dtype == torch.float64


@pytest.mark.parametrize("extent", [(8, 13), (17, 12), (9, 31), (13, 23)])
def test_tiles_cover_every_pixel_with_the_overlap_asked_for(extent, monkeypatch):
    model = OpticalFlow(CONFIG)
    seen = []

    def ones(frames, chunk_size):
        seen.append(frames[0, 0, 0, 0, :2].tolist())
        return torch.ones(1, 8, 12, 2)

    monkeypatch.setattr(model, "forward", ones)
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in extent), indexing="ij")
    frames = torch.stack([rows, columns, rows], dim=-1).float().expand(1, 2, -1, -1, -1)
    flow = tiled_flow(model, frames, min_overlap=4)
    torch.testing.assert_close(flow, torch.ones_like(flow))
    for axis, (size, whole) in enumerate(zip((8, 12), extent, strict=True)):
        starts = sorted({int(start[axis]) for start in seen})
        assert starts[0] == 0 and starts[-1] == whole - size
        assert all(later - start <= size - 4 for start, later in itertools.pairwise(starts))


@pytest.mark.parametrize(
    ("shape", "overlap", "message"),
    [
        ((1, 2, 7, 12, 3), 2, r"\[1, 2, 7, 12, 3\]: .* at least 8 × 12 pixels; pad and mask"),
        ((1, 2, 8, 12, 3), 8, "min_overlap 8: must be at least 0 and below 8"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(shape, overlap, message):
    with pytest.raises(ValueError, match=message):
        tiled_flow(OpticalFlow(CONFIG), torch.zeros(shape), min_overlap=overlap)


def test_learns_how_far_a_pattern_moves():
    torch.manual_seed(0)
    model = OpticalFlow(dataclasses.replace(CONFIG, rescale_factor=1.0, flow_scale=1.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch(size):
        pattern = torch.rand(size, 8, 12, 3)
        shift = torch.randint(0, 2, (size,))
        moved = torch.where(shift.view(-1, 1, 1, 1) == 1, pattern.roll(1, dims=2), pattern)
        return torch.stack([pattern, moved], dim=1), shift.float()

    for _ in range(40):
        frames, shift = batch(16)
        flow = model(frames)
        loss = (flow[..., 0] - shift.view(-1, 1, 1)).abs().mean() + flow[..., 1].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames, shift = batch(64)
    mean_flow = model(frames)[..., 0].mean(dim=(1, 2))
    assert ((mean_flow > 0.5).float() == shift).float().mean() > 0.9


def test_json_round_trip():
    for config in (CONFIG, dataclasses.replace(CONFIG, positions=LearnedPositions())):
        values = json.loads(json.dumps(config.to_dict()))
        assert FlowConfig.from_dict(values) == config
        assert pydantic.TypeAdapter(FlowConfig).validate_json(json.dumps(values)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": VideoInput(num_frames=3, height=8, width=8)}, "num_frames is 3; must be 2"),
        ({"patch_size": 4}, "patch_size is 4; must be odd"),
        ({"num_channels": 0}, "num_channels is 0; must be greater than or equal to 1"),
        ({"rescale_factor": 0.0}, "rescale_factor is 0.0; must be greater than 0"),
        ({"flow_scale": -1.0}, "flow_scale is -1.0; must be greater than 0"),
        ({"positions": FourierConfig(max_resolution=(3,))}, "a tuple of 2 number"),
        ({"decoder": DecoderConfig(num_heads=3)}, "num_heads is 3; .* the latents' 32 channels"),
        (
            {"encoder": dataclasses.replace(CONFIG.encoder, num_cross_heads=3)},
            "num_cross_heads is 3; must be a divisor of the cross-attend's 28 channels",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **values)


@pytest.mark.parametrize(
    ("frames", "mask", "message"),
    [
        (torch.zeros(1, 2, 8, 11, 3), None, r"\[1, 2, 8, 11, 3\]: .*\[batch, 2, 8, 12, 3\]"),
        (torch.zeros(1, 2, 8, 12, 3), torch.ones(1, 8, 12).bool(), r"mask of shape \[1, 8, 12\]"),
        (torch.zeros(1, 2, 8, 12, 3).int(), None, "torch.int32: expected torch.uint8 or floating"),
    ],
)
def test_wrong_inputs_are_refused(frames, mask, message):
    with pytest.raises(ValueError, match=message):
        OpticalFlow(CONFIG)(frames, mask)
