"""From shards or raw media to batches, and from a model to predictions and their files."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

from perceiver_model import (
    AudioInput,
    ChunksConfig,
    ClassifierConfig,
    EncoderConfig,
    FourierConfig,
    ImageInput,
    PatchesConfig,
)
from pipeline.inputs.batches import inputs_on, media_loader
from pipeline.inputs.collate import collate
from pipeline.media import AudioFormat, ImageFormat, MediaFormat, check_array
from pipeline.media.image.decode import encode_jpeg
from pipeline.registry.predict_inputs import Inputs
from pipeline.registry.predict_reading import predict_inputs
from pipeline.registry.prediction_tables import encode_predictions
from pipeline.registry.served.inference import ModelCard, Predictor
from pipeline.training.objectives.classification import Classification, ClassPrediction
from shards import Sample, ShardReader, ShardSet, encode_npy, publish, write_shard
from shards.loader import ShardBatch

CLASSES = ("cat", "dog", "owl")
IMAGES = ImageFormat(height=8, width=8, channels=1)
SOUNDS = AudioFormat(sample_rate=1000, seconds=0.1)
TINY = EncoderConfig(
    num_latents=2, latent_dim=8, num_blocks=1, num_cross_attends=1, num_self_attends=1,
    num_self_heads=1, latent_init_std=1.0,
)  # fmt: skip


def image_card() -> ModelCard:
    classifier = ClassifierConfig(
        input=ImageInput(height=8, width=8, channels=1),
        adapter=PatchesConfig(patch_size=4),
        positions=FourierConfig(num_bands=2),
        encoder=TINY,
        num_classes=3,
    )
    return ModelCard(Classification(classifier, CLASSES), IMAGES)


def audio_card() -> ModelCard:
    classifier = ClassifierConfig(
        input=AudioInput(sample_rate=1000, num_samples=100),
        adapter=ChunksConfig(chunk_size=10),
        positions=FourierConfig(num_bands=2, max_resolution=(10.0,)),
        encoder=TINY,
        num_classes=3,
    )
    return ModelCard(Classification(classifier, CLASSES), SOUNDS)


def random_weights(card: ModelCard) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    weights = card.objective.build_model().state_dict()
    return {name: value + 0.3 * torch.randn_like(value) for name, value in weights.items()}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    card = image_card()
    return Predictor(card, random_weights(card), torch.device("cpu"))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# --- a model on raw media ---


@pytest.mark.parametrize("card", [image_card(), audio_card()], ids=["image", "audio"])
def test_a_card_survives_json(card):
    again = ModelCard.from_json(card.to_json())
    assert again == card
    assert json.loads(card.to_json())["classes"] == list(CLASSES)


def test_a_prediction_is_the_likeliest_class(predictor):
    (prediction,) = predictor.predict([png(0)])
    assert list(prediction.probabilities) == list(CLASSES)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.probability == max(prediction.probabilities.values())
    assert prediction.probabilities[prediction.label] == prediction.probability
    assert (prediction.source, prediction.error) == ("bytes[0]", None)


def test_the_order_is_kept_over_batches(predictor):
    inputs = [png(seed) for seed in range(70)]
    together = predictor.predict(inputs)
    assert [p.source for p in together] == [f"bytes[{number}]" for number in range(70)]
    for number in (0, 1, 63, 64, 69):
        (alone,) = predictor.predict([inputs[number]])
        assert together[number].probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    assert len({round(p.probability, 6) for p in together}) > 60
    assert predictor.predict([]) == []


def test_paths_and_bytes_agree(predictor, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(3))
    forms = [path, str(path), png(3), bytearray(png(3)), memoryview(png(3))]
    predictions = predictor.predict(forms)
    assert [p.source for p in predictions[:3]] == [str(path), str(path), "bytes[2]"]
    for prediction in predictions[1:]:
        assert prediction.probabilities == pytest.approx(predictions[0].probabilities, abs=1e-6)


def test_what_cannot_be_used_gets_a_reason_and_the_rest_a_label(predictor, tmp_path):
    bad = {
        str(tmp_path / "missing.png"): "No such file or directory",
        str(tmp_path): "Is a directory",
        b"no image": "no image format that Pillow knows",
        b"": "the file is empty",
        str(tmp_path / "a\0b.png"): "null",
        "~$lock.png": "",
    }
    inputs = [item for number, given in enumerate(bad) for item in (given, png(number))]
    predictions = predictor.predict(inputs)
    good = predictor.predict([png(number) for number in range(len(bad))])
    assert all(p.label in CLASSES and p.error is None for p in predictions[1::2])
    for mixed, pure in zip(predictions[1::2], good, strict=True):
        assert mixed.probabilities == pytest.approx(pure.probabilities, abs=1e-6)
    for prediction, reason in zip(predictions[::2], bad.values(), strict=True):
        assert (prediction.label, prediction.probability, prediction.probabilities) == (None,) * 3
        assert prediction.error and reason in prediction.error
    assert [p.label for p in predictor.predict([b"", b""])] == [None, None]


def test_a_model_of_sound_masks_what_a_recording_lacks():
    card = audio_card()
    predictor = Predictor(card, random_weights(card), torch.device("cpu"))
    sound = np.random.default_rng(0).normal(0, 0.2, 100)

    def wav(samples: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, 1000, format="WAV", subtype="PCM_16")
        return buffer.getvalue()

    padded = np.concatenate([sound[:50], np.zeros(50)])
    short, long, silent = predictor.predict([wav(sound[:50]), wav(sound), wav(padded)])
    assert short.error is None and long.error is None
    assert short.probabilities != pytest.approx(silent.probabilities, abs=1e-6)
    (alone,) = predictor.predict([wav(sound[:50])])
    assert alone.probabilities == pytest.approx(short.probabilities, abs=1e-6)


def test_a_predictor_is_read_from_files(predictor, tmp_path):
    card = image_card()
    (tmp_path / "card.json").write_text(card.to_json())
    save_file(random_weights(card), tmp_path / "model.safetensors")
    loaded = Predictor.load(tmp_path / "card.json", tmp_path / "model.safetensors")
    assert loaded.card == card
    (expected,), (found,) = predictor.predict([png(1)]), loaded.predict([png(1)])
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


# --- arrays to tensors ---


def test_images_are_stacked_and_gaps_are_zero():
    array = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    inputs, mask = collate([array, None, array + 1], IMAGES)
    assert (inputs.dtype, list(inputs.shape), mask) == (torch.uint8, [3, 8, 8, 1], None)
    assert np.array_equal(inputs[0], array) and np.array_equal(inputs[2], array + 1)
    assert not inputs[1].any()


def test_sounds_are_padded_and_masked():
    inputs, mask = collate([np.ones(100, np.int16), None, np.full(3, -7, np.int16)], SOUNDS)
    assert (inputs.dtype, mask.dtype, inputs.shape) == (torch.int16, torch.bool, mask.shape)
    assert mask.sum(dim=1).tolist() == [100, 0, 3]
    assert inputs[2].tolist() == [-7] * 3 + [0] * 97
    assert mask[2, :3].all() and not inputs[1].any()


@pytest.mark.parametrize(
    ("array", "media"),
    [
        (np.zeros((8, 8, 3), np.uint8), IMAGES),
        (np.zeros((8, 8), np.uint8), IMAGES),
        (np.zeros((8, 8, 1), np.float32), IMAGES),
        (np.zeros(101, np.int16), SOUNDS),
        (np.zeros((100, 1), np.int16), SOUNDS),
        (np.zeros(100, np.float32), SOUNDS),
    ],
)
def test_an_array_of_another_kind_is_refused(array, media):
    with pytest.raises(ValueError, match="does not fit"):
        check_array(array, media)
    with pytest.raises(ValueError, match="does not fit"):
        collate([None, array], media)


# --- shards to batches ---


def make_reader(
    folder: Path, media: ImageFormat | AudioFormat, contents: list[bytes]
) -> ShardReader:
    """A published set of one split in shards of 4; targets are numbers modulo 3, none for 5."""
    samples = [
        Sample(
            f"key{number}",
            {media.member: content},
            None if number == 5 else number % 3,
            f"train/{number}.png",
            hashlib.sha256(content).hexdigest(),
        )
        for number, content in enumerate(contents)
    ]
    numbers = range(0, len(samples), 4)
    for shard, start in enumerate(numbers):
        write_shard(folder / "staging", shard, "train", samples[start : start + 4])
    publish(
        folder / "staging", folder / "set", numbers=range(len(numbers)), config={},
        input_digest="0" * 64, classes=CLASSES,
    )  # fmt: skip
    return ShardReader(ShardSet.open(folder / "set"), "train")


def an_image(number: int) -> np.ndarray:
    return np.full((8, 8, 1), 10 * number + 5, np.uint8)


@pytest.fixture
def images(tmp_path) -> ShardReader:
    """Samples 0 to 8; 2 is no array, 4 of another shape and 7 cut short."""
    contents = [encode_npy(an_image(number)) for number in range(9)]
    contents[2] = b"not an array at all"
    contents[4] = encode_npy(np.zeros((8, 9, 1), np.uint8))
    contents[7] = contents[7][:-3]
    return make_reader(tmp_path, IMAGES, contents)


def one_batch(reader: ShardReader, media: MediaFormat, **options: Any) -> ShardBatch:
    """The first batch in the order of the shards."""
    loader = media_loader(reader, {media.modality: media}, shuffle=False, **options)
    return next(iter(loader))


def test_padding_and_unreadable_samples_weigh_nothing_and_the_latter_are_named(images):
    batch = one_batch(images, IMAGES, batch_size=10)
    inputs, mask = inputs_on(batch, {"image": IMAGES}, torch.device("cpu"))
    assert batch.weights.tolist() == [1, 1, 0, 1, 0, 1, 1, 0, 1, 0]
    assert batch.weights.dtype == torch.float32
    assert batch.targets.tolist() == [0, 1, -1, 0, -1, -1, 0, -1, 2, -1]
    assert batch.targets.dtype == torch.int64
    assert inputs[:, 0, 0, 0].tolist() == [5, 15, 0, 35, 0, 55, 65, 0, 85, 0]
    assert mask is None
    assert [source for source, _ in batch.bad] == ["train/2.png", "train/4.png", "train/7.png"]
    assert "does not fit" in batch.bad[1][1]
    assert all(reason and "\n" not in reason for _, reason in batch.bad)


def test_a_batch_of_padding_is_all_zero(images):
    batch = one_batch(images, IMAGES, batch_size=3, rank=3, world_size=4)
    inputs, _ = inputs_on(batch, {"image": IMAGES}, torch.device("cpu"))
    assert list(inputs.shape) == [3, 8, 8, 1] and not inputs.any()
    assert not batch.weights.any() and batch.bad == ()


def test_a_lost_tar_is_named_for_each_of_its_samples(images):
    folder = images.shard_set.location.folder
    (folder / images.shard_set.shard_table["name"][1].as_py()).unlink()
    batch = one_batch(images, IMAGES, batch_size=9)
    assert batch.weights.tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 1]
    lost = {source: reason for source, reason in batch.bad if source.startswith("sample")}
    assert list(lost) == [f"sample {number} of split train" for number in (4, 5, 6, 7)]
    assert all("missing" in reason for reason in lost.values())


def test_a_lacking_member_is_named(images):
    other = ImageFormat(height=8, width=8, channels=1, encoding="jpeg")
    ((source, reason),) = one_batch(images, other, batch_size=1).bad
    assert source == "train/0.png" and "image.jpg" in reason


def test_jpeg_members_are_decoded(tmp_path):
    media = ImageFormat(height=8, width=8, channels=3, encoding="jpeg")
    pixels = np.full((8, 8, 3), 90, np.uint8)
    reader = make_reader(tmp_path, media, [encode_jpeg(pixels, 95), b"\xff\xd8 broken"])
    batch = one_batch(reader, media, batch_size=2)
    assert (batch.fields["image"][0].int() - 90).abs().max() <= 2
    assert batch.weights.tolist() == [1, 0] and batch.bad[0][0] == "train/1.png"


def test_sounds_come_with_their_masks(tmp_path):
    contents = [encode_npy(np.full(length, 3, np.int16)) for length in (100, 40, 120)]
    batch = one_batch(make_reader(tmp_path, SOUNDS, contents), SOUNDS, batch_size=4)
    sounds, mask = inputs_on(batch, {"audio": SOUNDS}, torch.device("cpu"))
    assert mask.sum(dim=1).tolist() == [100, 40, 0, 0] and list(sounds.shape) == [4, 100]
    assert batch.weights.tolist() == [1, 1, 0, 0]
    assert [source for source, _ in batch.bad] == ["train/2.png"]


def test_loader_processes_give_the_same_batches_in_the_same_order(images):
    here, there = (
        list(media_loader(images, {"image": IMAGES}, batch_size=2, seed=3, num_workers=workers))
        for workers in (0, 1)
    )
    assert len(here) == len(there) == 5
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.fields["image"], other.fields["image"])
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.weights, other.weights)
        assert one.bad == other.bad
    assert sorted(source for batch in here for source, _ in batch.bad) == [
        "train/2.png",
        "train/4.png",
        "train/7.png",
    ]


# --- names of files ---


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_names_that_are_not_utf_8_are_written(predictor, tmp_path, kind):
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    strange.write_bytes(png(0))
    (predictions,) = predict_inputs(predictor, iter(Inputs([str(strange)], IMAGES)), ())
    assert predictions[0].label in CLASSES
    content = encode_predictions(predictions, f".{kind}", ClassPrediction)
    if kind == "parquet":
        content = pq.read_table(pa.BufferReader(content))["source"][0].as_py().encode()
    assert b"\\udcff.png" in content
