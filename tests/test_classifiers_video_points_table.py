"""The classifier that reads video, feature maps, points or table rows."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from media_classifiers import (
    CONFIGS,
    POINTS,
    ROWS,
    VIDEO,
    assert_finite_logits_and_gradients,
    assert_samples_do_not_touch_each_other,
    bfloat16_logits,
    classifier,
    config_of,
    inputs_of,
    mask_of,
    restored,
)

from perceiver_model import PerceiverClassifier, forward_flops
from perceiver_model.adapters.table import TableRows
from perceiver_model.attention.multi_head import set_attention_path


@pytest.mark.parametrize("kind", CONFIGS)
def test_samples_in_a_batch_do_not_touch_each_other(kind):
    assert_samples_do_not_touch_each_other(classifier(kind), inputs_of(kind))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mask_of_all_true_equals_no_mask(kind):
    model, inputs = classifier(kind), inputs_of(kind)
    torch.testing.assert_close(
        model(inputs, mask_of(inputs, 2.0)), model(inputs), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_masked_inputs_are_without_influence(kind):
    model, inputs, other = classifier(kind), inputs_of(kind), inputs_of(kind, seed=3)
    mask = mask_of(inputs, 0.5)
    if isinstance(inputs, TableRows):
        changed = TableRows(
            torch.where(mask[:, :2], inputs.numeric, other.numeric),
            torch.where(mask[:, 2:], inputs.categorical, other.categorical),
        )
    else:
        changed = torch.where(mask.unsqueeze(-1), inputs, other)
    torch.testing.assert_close(model(changed, mask), model(inputs, mask), rtol=0, atol=0)
    assert not torch.allclose(model(changed), model(inputs), atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_sample_without_valid_input_has_finite_logits_and_gradients(kind):
    model, inputs = classifier(kind), inputs_of(kind)
    mask = mask_of(inputs, 2.0)
    mask[1] = False
    if not isinstance(inputs, TableRows) and inputs.is_floating_point():
        inputs[1] = math.nan
    assert_finite_logits_and_gradients(model, model(inputs, mask))


@pytest.mark.parametrize("kind", ["table", "table-learned"])
def test_rows_with_missing_values_only_have_finite_logits_and_gradients(kind):
    model = classifier(kind)
    assert_finite_logits_and_gradients(model, model(ROWS))


@pytest.mark.parametrize("path", ["fused", "factored", "separable"])
@pytest.mark.parametrize("kind", ["video-pixels", "video-patches", "points"])
def test_attention_paths_agree(kind, path):
    model, inputs = classifier(kind), inputs_of(kind)
    mask = mask_of(inputs, 0.7)
    set_attention_path(model, "reference")
    expected = model(inputs, mask)
    set_attention_path(model, path)
    torch.testing.assert_close(model(inputs, mask), expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_points_and_the_length_of_their_padding_change_nothing():
    model, points = classifier("points"), inputs_of("points")
    order = torch.randperm(10, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(model(points[:, order]), model(points), rtol=1e-4, atol=1e-4)
    longer = PerceiverClassifier(
        config_of(dataclasses.replace(POINTS, num_points=15), CONFIGS["points"].adapter)
    ).eval()
    longer.load_state_dict(model.state_dict())
    padded, mask = F.pad(points, (0, 0, 5, 0)), (torch.arange(15) >= 5).expand(2, -1)
    torch.testing.assert_close(longer(padded, mask), model(points), rtol=1e-4, atol=1e-4)


def test_frames_of_padding_change_nothing():
    config = CONFIGS["video-patches"]
    shorter_config = dataclasses.replace(
        config, input=dataclasses.replace(VIDEO, num_frames=2), positions=None
    )
    shorter = PerceiverClassifier(shorter_config).eval()
    longer = PerceiverClassifier(dataclasses.replace(config, positions=None)).eval()
    longer.load_state_dict(shorter.state_dict())
    videos = inputs_of("video-patches")
    mask = (torch.arange(4) < 2).expand(2, -1)
    torch.testing.assert_close(longer(videos, mask), shorter(videos[:, :2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_survive_safetensors(kind, tmp_path):
    model, inputs = classifier(kind), inputs_of(kind)
    again = restored(model, CONFIGS[kind], tmp_path)
    torch.testing.assert_close(again(inputs), model(inputs), rtol=0, atol=0)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", ["video-patches", "feature-map", "points", "table-learned"])
def test_compiles_into_one_graph(kind):
    model, inputs = classifier(kind), inputs_of(kind)
    mask = mask_of(inputs, 0.7)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(inputs, mask), model(inputs, mask))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_module_cast_to_bfloat16_gives_nearly_the_same_logits(kind):
    bfloat16_logits(classifier(kind), inputs_of(kind))


@pytest.mark.parametrize("kind", ["video-patches", "points", "table"])
def test_flops_are_those_of_the_matrix_products(kind):
    model = classifier(kind)
    set_attention_path(model, "reference")
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model(inputs_of(kind, size=1))
    assert forward_flops(CONFIGS[kind]) == counter.get_total_flops()


def test_learns_whether_a_column_is_missing():
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIGS["table-learned"], num_classes=2)
    model = PerceiverClassifier(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch(size):
        labels = torch.randint(0, 2, (size,))
        numeric = 10 + 4 * torch.randn(size, 2)
        numeric[:, 1] = torch.where(labels.bool(), math.nan, numeric[:, 1])
        return TableRows(numeric, torch.randint(-1, 4, (size, 2))), labels

    for _ in range(40):
        rows, labels = batch(32)
        optimizer.zero_grad()
        F.cross_entropy(model(rows), labels).backward()
        optimizer.step()
    rows, labels = batch(200)
    assert (model(rows).argmax(dim=-1) == labels).float().mean() > 0.95
