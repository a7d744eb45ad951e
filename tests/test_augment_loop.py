"""What `training.augment` makes of the batches of a training: views, masks, mixing, modalities."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augment_samples import ASKED, TAKEN, config_of, inputs_of
from modality_samples import make_config, make_shards

from perceiver_model.adapters.multimodal import MultimodalAdapter
from perceiver_model.adapters.text import MASK
from pipeline.config.load import validate
from pipeline.config.training import AugmentConfig
from pipeline.config.tree import Config
from pipeline.inputs.batches import inputs_on, media_loader
from pipeline.media import encode_members
from pipeline.media.format import MediaFormat
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.augmentation.modalities import ModalityDraws
from pipeline.training.augmentation.samples import augment_samples, repeat_samples
from pipeline.training.launch import run_training
from pipeline.training.objectives import Batch
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.segmentation import Segmentation
from pipeline.training.samples import batch_of
from shards import Sample, ShardReader, ShardSet, encode_npy, publish, write_shard

CPU = torch.device("cpu")
NAMES = ("dark", "light", "other")


def image_config(folder: Path, target: str, augment: dict[str, Any]) -> Config:
    """A tiny model of images that are classified or segmented."""
    tree = make_config("video", folder, augment=augment).tree()
    tree["data"]["video"], tree["data"]["image"] = None, {"height": 8, "width": 6, "channels": 1}
    tree["model"]["adapter"] = {"kind": "pixels"}
    tree["model"]["positions"] = {"kind": "learned", "num_channels": 8}
    if target == "mask":
        tree["data"] |= {"target": {"kind": "mask", "column": "mask", "classes": list(NAMES)},
                         "train": "images.csv", "columns": {"image": "image"}}  # fmt: skip
        tree["objective"] = {"kind": "segment", "query_positions": {"num_bands": 2}}
    return validate(tree, "images")


def write_images(config: Config, count: int = 8) -> ShardSet:
    """Random images; a mask is the image's own pixels by their brightness."""
    (media,) = config.data.formats.values()
    draw, folder = np.random.default_rng(0), Path(config.shards_folder)
    samples = []
    for number in range(count):
        image = draw.integers(0, 256, (8, 6, 1), np.uint8)
        members = encode_members(image, media)
        if config.data.target.kind == "mask":
            members["target.npy"] = encode_npy(image[..., 0] // 86)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        samples.append(Sample(f"{number:03d}", members, number % 3, f"raw/{number}", digest))
    write_shard(folder.with_name("staging"), 0, "train", samples)
    publish(
        folder.with_name("staging"), folder, numbers=range(1), config={}, input_digest="0" * 64,
        classes=NAMES, positions=[],
    )  # fmt: skip
    return ShardSet.open(folder)


def seen_in_training(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """The samples of the only training step, as the objective gets them."""
    seen: list[Batch] = []
    for each in (Classification, Segmentation):
        outputs = each.outputs

        def noting(
            self: Any, model: Any, batch: Batch, *, training: bool, of: Any = outputs
        ) -> Any:
            if training:
                seen.append(batch)
            return of(self, model, batch, training=training)

        monkeypatch.setattr(each, "outputs", noting)
    folder.mkdir()
    run_training(config, folder, None)
    (batch,) = seen
    return batch


def stored_batch(config: Config, numbers: torch.Tensor) -> Batch:
    """Samples as they lie in the shards."""
    reader = ShardReader(ShardSet.open(config.shards_folder), "train")
    formats, target = config.data.formats, config.data.target.kind
    loader = media_loader(reader, formats, target=target, batch_size=8, shuffle=False)
    whole = loader._maker.make(numbers.numpy(), 8)
    seed = step_seed(config.seed, 0, 0, 0)
    return batch_of(whole, *inputs_on(whole, formats, CPU), target, CPU, seed)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found is None and expected is None


@pytest.mark.parametrize("kind", ["video", "points", "mel", "sound", "text"])
def test_a_training_changes_its_batches(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(kind, tmp_path, augment={name: ASKED[name] for name in TAKEN[kind]})
    make_shards(kind, tmp_path, config, count=8)
    drawn = []
    monkeypatch.setattr(ModalityDraws, "draw", lambda self, *size, **own: drawn.append((size, own)))
    found = seen_in_training(config, tmp_path / "run", monkeypatch)
    stored = stored_batch(config, found.numbers)
    assert drawn == [((8,), {"seed": stored.seed, "rank": 0})]
    expected = augment_samples(
        stored, config.training.augment, config.data.formats, has_masks=False, seed=stored.seed,
        rank=0, global_batch=8,
    )  # fmt: skip
    same(found.inputs, expected.inputs)
    same(found.mask, expected.mask)
    assert found.inputs.shape != stored.inputs.shape or not torch.equal(found.inputs, stored.inputs)


@pytest.mark.parametrize("views", [1, 3])
def test_a_training_mixes_samples_and_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    config = image_config(tmp_path, "class", {"mixup": 0.8, "cutmix": 1.0, "views": views})
    write_images(config)
    found = seen_in_training(config, tmp_path / "run", monkeypatch)
    assert len(found.weights) == 8 * views and found.mix is not None
    stored = stored_batch(config, found.numbers)
    assert torch.equal(found.targets, stored.targets)
    pixels, share = stored.inputs.float() / 255, found.mix.shares
    # Each image is itself and one other, by the share that its classes have.
    for row in range(8 * views):
        others = [
            other for other in range(8 * views)
            if stored.targets[other] == found.mix.targets[row]
            and (torch.allclose(share[row] * pixels[row] + (1 - share[row]) * pixels[other],
                                found.inputs[row], atol=1e-5)
                 or is_cut(found.inputs[row], pixels[row], pixels[other], float(share[row])))
        ]  # fmt: skip
        assert others
    assert (share < 1).any()


def is_cut(image: torch.Tensor, own: torch.Tensor, other: torch.Tensor, share: float) -> bool:
    """Whether an image has `share` of its own pixels, and those of another elsewhere."""
    kept, came = image == own, image == other
    return bool((kept | came).all()) and float(kept.float().mean()) >= share - 1e-6


def test_a_training_moves_masks_with_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = image_config(tmp_path, "mask", {"flip": True, "shift_pixels": 2.0, "views": 2})
    write_images(config)
    found = seen_in_training(config, tmp_path / "run", monkeypatch)
    assert found.inputs.shape == (16, 8, 6, 1) and found.targets.shape == (16, 8, 6)
    came_in = found.targets == 255
    assert came_in.any() and not came_in.all()
    pixels = (found.inputs[..., 0] * 255).round().long()
    assert torch.equal((pixels // 86)[~came_in], found.targets[~came_in].long())
    assert not pixels[came_in].any()


def test_a_training_masks_bytes_and_never_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("text", tmp_path, augment={"mask_bytes": 0.3})
    make_shards("text", tmp_path, config, count=8)
    found = seen_in_training(config, tmp_path / "run", monkeypatch)
    stored = stored_batch(config, found.numbers)
    hidden = found.inputs == MASK
    assert torch.equal(found.inputs[~hidden], stored.inputs[~hidden])
    assert 0.15 < hidden[stored.mask].float().mean() < 0.45 and not hidden[~stored.mask].any()


def test_views_of_a_sample_follow_each_other_and_differ_on_any_number_of_workers() -> None:
    images, _ = inputs_of("image", 16)
    ones = torch.ones(16, dtype=torch.int64)
    whole = Batch(images, None, torch.arange(16), ones, torch.ones(16), torch.arange(16))
    augment = AugmentConfig(flip=True, shift_pixels=3.0, erase=0.5, views=4)
    formats: dict[str, MediaFormat] = config_of("image", {"flip": True}).data.formats

    def augmented(batch: Batch, rank: int) -> Batch:
        return augment_samples(
            batch, augment, formats, has_masks=False, seed=5, rank=rank, global_batch=16
        )

    after = augmented(whole, 0)
    assert after.numbers.tolist() == [number for number in range(16) for _ in range(4)]
    assert torch.equal(after.targets, after.numbers) and len(after.weights) == 64
    for views in after.inputs.split(4):
        assert len(views.flatten(1).unique(dim=0)) == 4
    names = ("inputs", "targets", "target_lengths", "weights", "numbers")
    parts = []
    for rank in range(2):
        half = slice(8 * rank, 8 * rank + 8)
        own = replace(whole, **{name: getattr(whole, name)[half] for name in names})
        parts.append(augmented(own, rank))
    assert torch.equal(torch.cat([part.inputs for part in parts]), after.inputs)
    assert repeat_samples(whole, 1) is whole


def test_views_that_would_be_equal_are_refused() -> None:
    with pytest.raises(ValueError, match="views is 2, but nothing else of augment changes samples"):
        config_of("image", {"views": 2})
    with pytest.raises(ValueError, match="flip changes none of the data"):
        config_of("text", {"views": 2, "flip": True})


def test_the_same_samples_lose_a_modality_on_any_number_of_workers() -> None:
    from test_objective_autoencode import objective_of, some_batch

    own = objective_of()
    parts = dict(own.model_config.input.modalities)
    parts["image"] = replace(parts["image"], dropout=0.5)
    media = replace(own.model_config.input, modalities=parts)
    model = replace(own, model_config=replace(own.model_config, input=media)).build_model()
    (adapter,) = [part for part in model.modules() if isinstance(part, MultimodalAdapter)]
    draws = ModalityDraws(model)
    one = some_batch()
    count = 16
    inputs = {"image": one.inputs["image"][:1].expand(count, -1, -1, -1),
              "audio": one.inputs["audio"][:1].expand(count, -1),
              "label": torch.zeros(count, dtype=torch.int64)}  # fmt: skip

    def tokens(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = count // world_size
        torch.manual_seed(rank)
        draws.draw(size, seed=9, rank=rank)
        content, mask = adapter({name: part[:size] for name, part in inputs.items()})
        return content, mask

    content, mask = tokens(0, 1)
    halves = [tokens(rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([half[0] for half in halves]), content)
    assert torch.equal(torch.cat([half[1] for half in halves]), mask)
    lost = ~mask.all(dim=1)
    hidden = (content[:, -1] == adapter.mask_tokens["label"]).all(dim=1)  # its label's token
    for chosen in (lost, hidden):
        assert 3 <= int(chosen.sum()) <= 13
    assert not torch.equal(lost, hidden)
