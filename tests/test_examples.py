"""Example predictions: pictures where the input has one, and a table for all."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modality_samples import FORMATS, make_config, make_shards
from PIL import Image

from pipeline.evaluation.examples import examples_of
from pipeline.inputs.modality import inputs_of
from pipeline.media import ImageFormat
from pipeline.registry.run_model import card_of
from pipeline.training.reports.pictures import confusion_picture, sample_picture


def image_of(png: bytes | None) -> Image.Image:
    assert png is not None
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize("kind", FORMATS)
def test_examples_are_spread_over_the_split_and_are_pictures_where_the_input_is(
    kind: str, tmp_path: Path
) -> None:
    config = make_config(kind, tmp_path)
    shard_set = make_shards(kind, tmp_path, config, count=12)
    card = card_of(config, shard_set)
    torch.manual_seed(0)
    total = shard_set.num_samples("validation")
    found = examples_of(card, shard_set, "validation", card.objective.build_model(), 3)
    numbers = [sample["number"] for sample, _ in found]
    assert numbers == [0, round((total - 1) / 2), total - 1][: len(numbers)]
    assert len(numbers) == min(3, total)
    for sample, inputs in found:
        assert sample["answer"]["class"] in card.objective.class_names
        assert sample["target"] in card.objective.class_names
        assert all(view["kind"] != "none" for view in sample["attention"].values())
        picture = sample_picture(sample, inputs)
        assert (picture is None) == (kind in ("text", "table"))
        if picture is not None:
            (pixels,) = inputs.values()
            assert pixels.max() > 0, "something is drawn"
            drawn = image_of(picture)
            assert drawn.height > 160 and drawn.width >= pixels.shape[1]


def test_masks_are_panels_beside_the_input() -> None:
    def png(colour: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), colour).save(buffer, "PNG")
        return buffer.getvalue()

    sample: dict[str, Any] = {
        "source": "a/b.png\x1b[31m", "loss": 0.25, "attention": {},
        "target": {"mask": png(200), "shares": {"sky": 0.5}}, "answer": {"mask": png(90)},
    }  # fmt: skip
    fmt = ImageFormat(height=8, width=8)
    image = inputs_of(fmt).input_picture(torch.zeros(8, 8, 3, dtype=torch.uint8), fmt)
    assert image is not None
    pixels = np.asarray(image_of(sample_picture(sample, {"image": image})))
    colours = {int(value) for value in np.unique(pixels[..., 0])}
    assert {0, 200, 90} <= colours


def test_confusions_are_drawn_for_few_and_many_classes_and_for_labels() -> None:
    few = {"classes": ["a", "b"], "counts": [[3, 1], [0, 2]]}
    names = [f"class {number}" for number in range(500)]
    many = {"classes": names, "counts": np.eye(500, dtype=int).tolist()}
    labels = {"classes": ["x" * 500], "counts_by_label": [[[1, 2], [3, 4]]]}
    assert image_of(confusion_picture(few)).width < 400
    shaded = image_of(confusion_picture(many))
    assert shaded.size == (500, 500)
    assert shaded.getpixel((7, 7)) == (30, 110, 190) and shaded.getpixel((7, 8)) == (255,) * 3
    assert image_of(confusion_picture(labels)).width < 600, "names are cut"
    assert confusion_picture(None) is None
