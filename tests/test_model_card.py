"""A registered model's card and weights are believed only as far as they fit each other."""

import json
import math
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from media_classifiers import CONFIGS
from safetensors.torch import save_file
from test_inference import image_card, random_weights

from perceiver_model import PerceiverClassifier, preset
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.presets import PRESETS
from pipeline.registry.served.card import ModelCardError, _shapes
from pipeline.registry.served.inference import Predictor


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a card and of its weights."""
    card = image_card()
    (tmp_path / "card.json").write_text(card.to_json())
    save_file(random_weights(card), tmp_path / "w.safetensors")
    return tmp_path / "card.json", tmp_path / "w.safetensors"


def test_a_card_and_its_weights_are_a_model(model: tuple[Path, Path]) -> None:
    assert Predictor.load(*model).card == image_card()


@pytest.mark.parametrize("name", [n for n in PRESETS if isinstance(preset(n), ClassifierConfig)])
def test_every_classifier_is_compared_before_it_takes_memory(name: str) -> None:
    for config in CONFIGS.values():  # torch imports what it needs for shapes alone
        _shapes(lambda config=config: PerceiverClassifier(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shapes = _shapes(lambda: PerceiverClassifier(preset(name)))
    numbers = sum(math.prod(shape) for shape, _ in shapes.values())
    assert numbers > 40_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "KiB"


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_modality_is_compared_by_the_shapes_it_has(kind: str) -> None:
    config = CONFIGS[kind]
    state = PerceiverClassifier(config).state_dict()
    assert {
        name: shape for name, (shape, _) in _shapes(lambda: PerceiverClassifier(config)).items()
    } == {name: tuple(each.shape) for name, each in state.items()}


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda card: [card],
    "another field": lambda card: card | {"code": "import os"},
    "no field": lambda card: {k: v for k, v in card.items() if k != "media"},
    "classes: no list": lambda card: card | {"classes": "abc"},
    "classes: no names": lambda card: card | {"classes": [1, 2, 3]},
    "classes: twice": lambda card: card | {"classes": ["a", "a", "b"]},
    "classes: too few": lambda card: card | {"classes": ["a"]},
    "media: none": lambda card: card | {"media": None},
    "media: another": lambda card: card | {"media": {"modality": "smell"}},
    "classifier: none": lambda card: card | {"classifier": 7},
    "classifier: list": lambda card: card | {"classifier": []},
    "a latent too wide for this machine": lambda card: _with_encoder(card, latent_dim=2**24),
    "more latents than this machine holds": lambda card: _with_encoder(card, num_latents=2**40),
    "no latents": lambda card: _with_encoder(card, num_latents=0),
    "layers without end": lambda card: _with_encoder(card, num_self_attends=10**9),
    "blocks that share weights without end": lambda card: _with_encoder(card, num_blocks=10**9),
    "an integer that is no machine's": lambda card: _with_encoder(card, latent_init_std=10**400),
    "pixels without end": lambda card: _with("input", card, height=10**9),
    "a table of positions without end": lambda card: _with("positions", card, num_bands=2**33),
    "media: no number": lambda card: _with_media(card, height="8"),
    "media: NaN": lambda card: _with_media(card, height=math.nan),
    "media: true": lambda card: _with_media(card, width=True),
    "media: channels": lambda card: _with_media(card, channels=[]),
    "media: another encoding": lambda card: _with_media(card, encoding="exec"),
    "media: a huge integer": lambda card: _with_media(card, height=2**63),
    "classes: a terminal's": lambda card: card | {"classes": ["a", "b", "\x1b[2J"]},
    "latents of text": lambda card: _with_encoder(card, num_latents="8"),
}


def _with_encoder(card: dict[str, Any], **values: Any) -> dict[str, Any]:
    encoder = card["classifier"]["encoder"] | values
    return card | {"classifier": card["classifier"] | {"encoder": encoder}}


def _with(part: str, card: dict[str, Any], **values: Any) -> dict[str, Any]:
    changed = card["classifier"][part] | values
    return card | {"classifier": card["classifier"] | {part: changed}}


def _with_media(card: dict[str, Any], **values: Any) -> dict[str, Any]:
    return card | {"media": card["media"] | values}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_is_refused_in_one_line(model: tuple[Path, Path], name: str) -> None:
    path, weights = model
    path.write_text(json.dumps(HOSTILE[name](json.loads(path.read_text()))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelCardError) as caught:
        Predictor.load(path, weights)
    assert len(str(caught.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "KiB"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"null"])
def test_what_is_no_card_is_refused(model: tuple[Path, Path], content: bytes) -> None:
    model[0].write_bytes(content)
    with pytest.raises(ModelCardError, match="no card of a model"):
        Predictor.load(*model)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("number", [0, 1])
def test_a_pipe_is_not_waited_for(model: tuple[Path, Path], number: int) -> None:
    model[number].unlink()
    os.mkfifo(model[number])
    with pytest.raises(ModelCardError, match="no regular file"):
        Predictor.load(*model)


def test_weights_of_another_model_are_refused(model: tuple[Path, Path]) -> None:
    weights = random_weights(image_card())
    name = next(iter(weights))
    for other in (
        {k: v for k, v in weights.items() if k != name},
        weights | {"more": torch.zeros(1)},
        weights | {name: weights[name][:1].contiguous()},
        weights | {name: weights[name].double()},
    ):
        save_file(other, model[1])
        with pytest.raises(ModelCardError, match="no weights of this model"):
            Predictor.load(*model)


def test_weights_that_declare_more_than_there_is_are_refused(model: tuple[Path, Path]) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    model[1].write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(ModelCardError, match="no weights of this model"):
        Predictor.load(*model)
    for content in (b"", b"\xff" * 64):
        model[1].write_bytes(content)
        with pytest.raises(ModelCardError, match="no weights of this model"):
            Predictor.load(*model)
