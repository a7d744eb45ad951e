"""What the study of attention compares: maps of images, and attends that read something else."""

from functools import cache

import torch
from PIL import Image

from perceiver_model import PerceiverClassifier
from perceiver_model.attention_maps import cross_attention_maps
from pipeline.config.tree import Config
from pipeline.studies.planning import base_config
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.works.attention import (
    _against_shuffled,
    _divergences,
    _picture,
    _reading,
    _within_classes,
)

IMAGES = torch.randint(
    256, (8, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)


@cache
def config_and_model(output: str = "runs") -> tuple[Config, PerceiverClassifier]:
    torch.manual_seed(0)
    small = ("data.image.height=4", "data.image.width=4")
    scale = STUDIES["attention"].scales["tiny"]
    config = base_config(Request("attention", output=output, overrides=small), scale)
    return config, PerceiverClassifier(config.classifier(10)).eval()


@torch.no_grad()
def test_attends_that_read_the_image_give_the_models_logits() -> None:
    _, model = config_and_model()
    as_it_is = model(IMAGES)
    torch.testing.assert_close(_reading(model)(IMAGES, None), as_it_is)
    later = _reading(model, later=torch.zeros_like)(IMAGES, None)
    assert (later - as_it_is).abs().amax(dim=1).min() > 1e-4
    # The image still enters by the first cross-attend, and by no other way.
    assert later.std(dim=0).max() > 1e-4
    blind = _reading(model, first=torch.zeros_like, later=torch.zeros_like)(IMAGES, None)
    torch.testing.assert_close(blind, blind[:1].expand_as(blind))


def test_maps_diverge_between_images_and_not_between_copies_of_one() -> None:
    _, model = config_and_model()
    assert set(_divergences(cross_attention_maps(model, IMAGES))) == {1, 2, 3, 4}
    assert min(_divergences(cross_attention_maps(model, IMAGES)).values()) > 0
    copies = IMAGES[:1].expand(3, -1, -1, -1)
    assert max(_divergences(cross_attention_maps(model, copies)).values()) < 1e-6
    even = torch.full((2, 4, 4, 1), 90, dtype=torch.uint8)
    assert max(_against_shuffled(model, even).values()) < 1e-6
    assert min(_against_shuffled(model, IMAGES[:2]).values()) > 0
    # Copies within each class, and different images between classes.
    pairs, targets = IMAGES[:2].repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1])
    assert max(_within_classes(model, pairs, targets).values()) < 1e-6


def test_the_picture_has_a_row_for_each_image_and_a_map_for_each_attend(tmp_path: object) -> None:
    config, model = config_and_model(str(tmp_path))
    config.folder.mkdir(parents=True)
    found = _picture(config, "ours", IMAGES, cross_attention_maps(model, IMAGES))
    with Image.open(found["file"]) as picture:
        assert picture.size == ((1 + 2 * 4) * (4 * 6 + 2), 3 * (4 * 6 + 2))
