"""`objective.test_time`: answers averaged over mirrored and cropped views of images and films."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from modality_samples import make_config
from PIL import Image

from perceiver_model.adapters.multimodal_config import Modality, MultimodalInput, PaddedModalities
from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.media import ImageFormat
from pipeline.registry.served.card import ModelCard
from pipeline.registry.served.inference import Predictor
from pipeline.training.objectives import Batch
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.input_views import InputViews
from pipeline.training.objectives.multi_label import MultiLabel
from pipeline.training.objectives.regression import Regression

IMAGE = ImageFormat(height=9, width=6, channels=1)
NAMES = ("a", "b", "c")
BOTH = InputViews(flip=True, crop_area=0.5)


def config_of(test_time: dict[str, Any] | None, **objective: Any) -> Config:
    tree = make_config("video", Path("/nowhere")).tree()
    tree["data"]["video"], tree["data"]["image"] = None, {"height": 9, "width": 6, "channels": 1}
    tree["model"] |= {"adapter": {"kind": "pixels"}, "positions": {"num_bands": 2}}
    tree["objective"] = {"kind": "classify", "test_time": test_time, **objective}
    return validate(tree, "views")


def classifier(views: InputViews | None) -> Classification:
    return Classification(config_of(None).classifier(3), NAMES, test_time=views)


def batch_of(images: torch.Tensor) -> Batch:
    ones = torch.ones(len(images), dtype=torch.int64)
    return Batch(images, None, ones, ones, torch.ones(len(images)), torch.arange(len(images)))


def some_images(count: int = 4, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 9, 6, 1), generator=draw, dtype=torch.uint8)


def views_by_hand(images: torch.Tensor) -> list[torch.Tensor]:
    """The whole and its five crops of half the area (6 x 4 of 9 x 6 pixels), and their mirrors."""
    pixels, found = images.float() / 255, []
    for top, left in ((None, None), (0, 0), (0, 2), (3, 0), (3, 2), (2, 1)):
        part = pixels if top is None else pixels[:, top : top + 6, left : left + 4]
        whole = F.interpolate(part.movedim(-1, 1), (9, 6), mode="bilinear").movedim(1, -1)
        found += [whole, whole.flip(2)]
    return found


def linear(inputs: torch.Tensor, mask: Any) -> torch.Tensor:
    """A model whose answer depends on where the light is."""
    pixels = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
    weights = torch.linspace(-3, 3, 54 * 3).reshape(54, 3).sin() * 3
    return pixels.flatten(1) @ weights


def test_classes_have_the_mean_probability_of_their_views() -> None:
    batch = batch_of(some_images())
    outputs = classifier(BOTH).outputs(linear, batch, training=False)
    each = [linear(view, None).softmax(dim=1) for view in views_by_hand(batch.inputs)]
    assert len(each) == 12
    torch.testing.assert_close(outputs.softmax(dim=1), torch.stack(each).mean(dim=0))
    torch.testing.assert_close(outputs.exp().sum(dim=1), torch.ones(4))
    flipped = classifier(InputViews(flip=True)).outputs(linear, batch, training=False)
    torch.testing.assert_close(flipped.softmax(dim=1), (each[0] + each[1]) / 2)


def test_labels_and_numbers_are_means_too() -> None:
    batch = batch_of(some_images())
    views = views_by_hand(batch.inputs)
    labels = MultiLabel(config_of(None).classifier(3), NAMES, 0.5, BOTH)
    outputs = labels.outputs(linear, batch, training=False)
    expected = torch.stack([linear(view, None).sigmoid() for view in views]).mean(dim=0)
    torch.testing.assert_close(outputs.sigmoid(), expected)
    numbers = Regression(config_of(None).classifier(3), NAMES, (0.0,) * 3, (1.0,) * 3,
                         test_time=BOTH)  # fmt: skip
    found = numbers.outputs(lambda *of: linear(*of).unsqueeze(-1), batch, training=False)
    torch.testing.assert_close(found, torch.stack([linear(v, None) for v in views]).mean(dim=0))


@pytest.mark.parametrize(("views", "training"), [(None, False), (None, True), (BOTH, True)])
def test_training_and_models_without_views_take_the_input_as_it_is(
    views: InputViews | None, training: bool
) -> None:
    seen: list[Any] = []

    def model(inputs: torch.Tensor, mask: Any) -> torch.Tensor:
        seen.append(inputs)
        return linear(inputs, mask)

    batch = batch_of(some_images())
    outputs = classifier(views).outputs(model, batch, training=training)
    assert len(seen) == 1 and seen[0] is batch.inputs
    assert torch.equal(outputs, linear(batch.inputs, None))


def test_of_several_modalities_only_pictures_change() -> None:
    parts = config_of(None).reading()
    image = Modality(**parts)
    media = MultimodalInput(modalities={"image": image, "other": image})
    inputs = {"image": some_images(), "other": some_images(seed=1)}
    seen: list[dict[str, torch.Tensor]] = []
    batch = Batch(inputs, {}, *(torch.ones(4),) * 4)

    def model(given: dict[str, torch.Tensor], mask: Any) -> torch.Tensor:
        seen.append(given)
        return torch.zeros(4, 3)

    InputViews(flip=True).stack(model, batch, media)
    assert torch.equal(seen[1]["image"], inputs["image"].flip(2))
    text = make_config("text", Path("/nowhere")).reading()
    mixed = MultimodalInput(modalities={"image": image, "other": Modality(**text)})
    InputViews(flip=True).stack(model, batch, mixed)
    assert torch.equal(seen[3]["image"], inputs["image"].flip(2))
    assert seen[3]["other"] is inputs["other"]
    assert PaddedModalities().embedding_channels > 0


def test_a_registered_model_answers_alike_for_an_image_and_its_mirror(tmp_path: Path) -> None:
    own = classifier(InputViews(flip=True))
    torch.manual_seed(0)
    weights = own.build_model().state_dict()
    card = ModelCard.from_json(ModelCard(own, IMAGE).to_json())
    assert card.objective.test_time == own.test_time  # type: ignore[attr-defined]  # of classify
    image = some_images(1)[0, :, :, 0].numpy()

    def answers(card: ModelCard) -> list[dict[str, float]]:
        files = []
        for pixels in (image, image[:, ::-1]):
            file = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
            files.append(file.getvalue())
        found: Any = Predictor(card, weights).predict(files)
        return [each.probabilities for each in found]

    one, other = answers(card)
    assert one == pytest.approx(other, abs=1e-6)
    plain = answers(ModelCard(classifier(None), IMAGE))
    assert plain[0] != pytest.approx(plain[1], abs=1e-4)
    mean = {name: (plain[0][name] + plain[1][name]) / 2 for name in NAMES}
    assert one == pytest.approx(mean, abs=1e-6)


def test_a_card_without_views_has_no_field_and_a_wrong_one_is_refused() -> None:
    plain = json.loads(ModelCard(classifier(None), IMAGE).to_json())
    assert "test_time" not in plain
    good = {"flip": True, "crop_area": 0.5}
    assert ModelCard.from_json(json.dumps({**plain, "test_time": good}))
    for bad in (
        {"flip": 1, "crop_area": None}, {"flip": True}, {"flip": False, "crop_area": None},
        {"flip": True, "crop_area": 2.0}, {"flip": True, "crop_area": True}, [True], "flip",
        {**good, "more": 1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="test_time"):
            ModelCard.from_json(json.dumps({**plain, "test_time": bad}))
    with pytest.raises(ValueError, match="a card has the fields"):
        ModelCard.from_json(json.dumps({**plain, "other": good}))


def test_the_options_are_those_of_the_configuration_and_others_are_refused() -> None:
    found = config_of({"flip": True, "crop_area": 0.75}).trained_for
    assert InputViews.of(found) == InputViews(flip=True, crop_area=0.75)
    assert InputViews.of(config_of(None).trained_for) is None
    with pytest.raises(UserError, match="test_time has neither flip nor crop_area"):
        config_of({})
    with pytest.raises(UserError, match="test_time: unknown key"):
        config_of({"flip": True}, kind="segment")
    tree = make_config("text", Path("/nowhere")).tree()
    tree["objective"] = {"kind": "classify", "test_time": {"flip": True}}
    with pytest.raises(UserError, match="test_time changes images and films; data has text"):
        validate(tree, "texts")
