"""The recipes for few samples that ship: each changes a batch of real media and takes a step."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from modality_samples import ROWS, raw_media

from pipeline.config.augment import asked
from pipeline.config.load import load_config
from pipeline.inputs.collate import collate
from pipeline.media import FittedTableFormat, array_type, decode, fit_vocabulary
from pipeline.media.table.modality import VOCABULARY
from pipeline.training.augmentation.batch import augment_batch
from pipeline.training.augmentation.mixing import mix_batch
from pipeline.training.objectives import Batch
from pipeline.training.objectives.classification import Classification
from pipeline.training.optimizer import make_optimizer

RECIPES = ["images", "audio", "video", "points", "text", "table"]
OF_THE_TABLE = {"table": "{numeric: [x, y], categorical: [c]}"}
COUNT = 4


def batch_of_media(config):
    """Decoded media of two classes, and the model's configuration that reads them."""
    (media,) = config.data.formats.values()
    made_with = None
    kind = "sound" if media.modality == "audio" else media.modality
    if kind == "table":
        vocabulary = fit_vocabulary([pa.RecordBatch.from_pylist(ROWS)], media)
        media = FittedTableFormat.of(media, vocabulary)
        made_with = {VOCABULARY: vocabulary.to_dict()}
    if kind == "image":
        generator, (_, shape) = np.random.default_rng(0), array_type(media)
        arrays = [generator.integers(0, 256, shape, np.uint8) for _ in range(COUNT)]
    else:
        arrays = [decode(raw_media(kind, number), media) for number in range(COUNT)]
    return media, collate(arrays, media), made_with


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_its_samples_and_takes_a_step(name):
    section = OF_THE_TABLE.get(name)
    overrides = [f"data.table={section}"] if section else []
    # The sample films are short.
    overrides += ["data.video.pad_short=true"] if name == "video" else []
    config = load_config(name, overrides)
    media, (inputs, mask), made_with = batch_of_media(config)
    training = config.training
    share = {"seed": 1, "rank": 0, "global_batch": COUNT}
    changed, moved = augment_batch(inputs, mask, {media.modality: media}, training.augment, **share)
    if asked(training.augment):
        assert changed is not inputs
    numbers = torch.arange(COUNT)
    batch = Batch(changed, moved, numbers % 2, torch.ones(COUNT), torch.ones(COUNT), numbers)
    batch = mix_batch(batch, training.augment, **share)
    torch.manual_seed(0)
    objective = Classification(
        config.classifier(2, made_with), ("zero", "one"), training.label_smoothing
    )
    model = objective.build_model()
    optimizer = make_optimizer(model, training)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for _ in range(2):  # new residual blocks pass their input on, so all learn from step 2 on
        optimizer.zero_grad()
        loss = objective.losses(model(batch.inputs, batch.mask), batch, training=True).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    unmoved = {
        name
        for (name, now), then in zip(model.named_parameters(), before, strict=True)
        if torch.equal(now, then)
    }
    # All keys get the same bias, which changes no attention.
    assert all(name.endswith("key.bias") for name in unmoved)
