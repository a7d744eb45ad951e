"""Captions of digits, and a model that is tested with modalities dropped, wrong or mislabelled."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from perceiver_model import PerceiverClassifier
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.inputs.batches import inputs_on
from pipeline.runs.console import Console
from pipeline.studies.caption_data import CAPTIONED, CAPTIONS, REPLACED, caption
from pipeline.studies.data import make_set
from pipeline.studies.planning import base_config
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.sets import split_loader
from pipeline.studies.works.modalities import _under

TEXT = {"kind": "token_embedding", "num_channels": 8}
POSITIONS = {"kind": "fourier", "num_bands": 2}


def config_of(output: Path) -> Config:
    request = Request("permuted", scale="tiny", output=str(output))
    base = base_config(request, STUDIES["permuted"].scales["tiny"])
    return with_values(
        base,
        {
            "data.image.height": 8,
            "data.image.width": 8,
            "data.text": {"max_length": 8},
            "model.adapter": None,
            "model.positions": {},
            "model.modalities": {
                "image": {"adapter": {"kind": "pixels"}, "positions": POSITIONS},
                "text": {"adapter": TEXT},
            },
        },
    )


def test_letters_of_captions_are_replaced_as_often_as_said() -> None:
    random = np.random.default_rng(0)
    captions = [caption(7, random) for _ in range(2000)]
    english = [text for text in captions if len(text) == len("seven")]
    kept = np.mean([[a == b for a, b in zip(t, "seven", strict=True)] for t in english[:900]])
    # English and Spanish words have five letters (siete), of which two agree; chance adds 1/26.
    assert len({len(text) for text in captions}) == 3
    assert 0.5 * (1 - REPLACED) < kept < 1 - REPLACED + 0.1
    assert max(map(len, captions)) <= 8


def test_captions_lie_beside_their_pictures(
    tmp_path: Path, digit_images: Path, ray_cluster: None, console: Console
) -> None:
    given = tmp_path / "given"
    for split in ("train", "test"):
        for path in sorted((digit_images / split).glob("*/*0.png")):
            copy = given / CAPTIONED / split / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            copy.with_suffix(".txt").write_text(f"{path.parent.name} {path.stem[-4:]}")
    config = config_of(tmp_path)
    both = make_set(config, CAPTIONED, 0, tmp_path, given, console)
    (batch,) = split_loader(config, both, "test")
    there = batch.weights > 0
    texts = ["".join(map(chr, row.tolist())) for row in batch.fields["text"][there]]
    assert [text[0] for text in texts] == [
        both.manifest.classes[target] for target in batch.targets[there].tolist()
    ]
    inputs, _ = inputs_on(batch, config.data.formats, torch.device("cpu"))
    assert isinstance(inputs, dict) and inputs["image"].shape[1:] == (8, 8, 1)

    alone = with_values(config, {"data.image": None, "model.modalities": {}, "model.adapter": TEXT})
    texts_only = make_set(alone, CAPTIONS, 0, tmp_path, given, console)
    assert texts_only.manifest.counts == both.manifest.counts


@pytest.fixture
def model_and_inputs(tmp_path: Path) -> tuple[PerceiverClassifier, dict, dict]:
    torch.manual_seed(0)
    model = PerceiverClassifier(config_of(tmp_path).classifier(3)).eval()
    for vector in model.adapter.padding.vectors.values():  # as after a training
        torch.nn.init.normal_(vector)
    inputs = {
        "image": torch.randint(256, (6, 8, 8, 1), dtype=torch.uint8),
        "text": torch.randint(6, 200, (6, 8)),
    }
    masks = {"text": torch.arange(8) < torch.tensor([3, 8, 5, 4, 7, 6])[:, None]}
    return model, inputs, masks


@torch.inference_mode()
def test_a_dropped_modality_has_no_influence(
    model_and_inputs: tuple[PerceiverClassifier, dict, dict],
) -> None:
    model, inputs, masks = model_and_inputs
    other = {**inputs, "text": inputs["text"].flip(0)}
    without = _under("without text", model)
    assert torch.equal(without(inputs, masks), without(other, masks))
    assert not torch.allclose(without(inputs, masks), model(inputs, masks))
    nothing = {"text": torch.zeros_like(masks["text"])}  # how a batch says that it lacks texts
    torch.testing.assert_close(without(inputs, masks), model(inputs, nothing))


@torch.inference_mode()
def test_no_sample_keeps_its_own_text(
    model_and_inputs: tuple[PerceiverClassifier, dict, dict],
) -> None:
    model, inputs, masks = model_and_inputs
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args))
    _under("others' text", model)(inputs, masks)
    ((given, mask),) = seen
    assert torch.equal(given["image"], inputs["image"])
    rows = [inputs["text"].tolist().index(row) for row in given["text"].tolist()]
    assert sorted(rows) == list(range(6))
    assert all(row != own for own, row in enumerate(rows))
    assert torch.equal(mask["text"], masks["text"][rows])


@torch.inference_mode()
def test_swapped_labels_change_the_answer_and_are_put_back(
    model_and_inputs: tuple[PerceiverClassifier, dict, dict],
) -> None:
    model, inputs, masks = model_and_inputs
    before = model(inputs, masks)
    swapped = _under("labels swapped", model)(inputs, masks)
    assert not torch.allclose(swapped, before)
    assert torch.equal(model(inputs, masks), before)
    image, text = (model.adapter.padding.vectors[name] for name in ("image", "text"))
    channels = min(image.shape[1], text.shape[1])
    kept = image[:, -channels:].clone()
    image[:, -channels:] = text[:, -channels:]
    text[:, -channels:] = kept
    assert torch.equal(model(inputs, masks), swapped)
