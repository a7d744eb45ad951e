"""The tables and clouds of points that studies read: what is removed, split and drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.studies import image_data
from pipeline.studies.data import data_sections, fold_of, make_set
from pipeline.studies.image_data import BLURRED, PLAIN, image_format, write_changed
from pipeline.studies.planning import base_config
from pipeline.studies.point_data import POINTS, ink_points
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.sets import split_loader
from pipeline.studies.table_data import (
    FOLDS,
    fold_of_rows,
    removed_values,
    table_named,
    without,
)
from pipeline.studies.trainings import test_accuracy as accuracy_on_test
from shards import ShardSet


def base_of_digits(output: Path) -> Config:
    small = ("data.image.height=8", "data.image.width=8")
    request = Request("permuted", scale="tiny", output=str(output), overrides=small)
    return base_config(request, STUDIES["permuted"].scales["tiny"])


def base_of_table(output: Path, name: str) -> Config:
    values = {"data.image": None, "model.adapter": {"kind": "columns", "num_channels": 8}}
    return with_values(
        base_of_digits(output), {**values, **data_sections(name), "model.positions": {}}
    )


def rows_of(config: Config, shard_set: ShardSet, split: str) -> tuple[np.ndarray, list[str]]:
    """The rows of a split, with its classes."""
    rows, classes = [], []
    for batch in split_loader(config, shard_set, split):
        there = batch.weights > 0
        rows.append(batch.fields["table"][there].numpy())
        classes += [shard_set.manifest.classes[k] for k in batch.targets[there].tolist()]
    return np.concatenate(rows), classes


@pytest.mark.parametrize(
    ("name", "rows", "columns", "classes"),
    [
        ("wine", 178, 13, 3),
        ("cancer", 569, 30, 2),
        ("phishing", 1250, 9, 2),
        ("digits", 1797, 64, 10),
        ("segments", 2310, 18, 7),
    ],
)
def test_the_tables_are_whole(name: str, rows: int, columns: int, classes: int) -> None:
    table = table_named(name)
    assert table.rows.shape == (rows, columns) == (len(table.classes), len(table.columns))
    assert len(set(table.classes)) == classes
    assert np.isfinite(table.rows).all()
    assert set(table.categorical) <= set(table.columns)


def test_folds_share_nothing_and_have_each_class() -> None:
    classes = table_named("wine").classes
    folds = fold_of_rows(classes, 0)
    for fold in range(FOLDS):
        test = {c: sum(np.array(classes)[folds == fold] == c) for c in set(classes)}
        whole = {c: classes.count(c) for c in set(classes)}
        assert all(abs(test[c] - whole[c] / FOLDS) <= 1 for c in whole)
    assert not np.array_equal(folds, fold_of_rows(classes, 1))
    assert [fold_of("wine", seed) for seed in (0, 6)] == [0, 6]
    assert [fold_of(PLAIN, seed) for seed in (0, 6)] == [0, 0]


def test_a_set_of_a_table_holds_its_rows_without_what_was_removed(
    tmp_path: Path, ray_cluster: None, console: Console
) -> None:
    name, table = without("wine", 0.3), table_named("wine")
    config = base_of_table(tmp_path, name)
    shard_set = make_set(config, name, 6, tmp_path, None, console)
    is_test = fold_of_rows(table.classes, 1) == 1
    removed = removed_values(name, table.rows.shape)
    assert 0.25 < removed.mean() < 0.35
    whole = np.where(removed, np.nan, table.rows)
    for split, chosen in (("train", ~is_test), ("test", is_test)):
        rows, classes = rows_of(config, shard_set, split)
        found = sorted(zip(map(repr, rows.tolist()), classes, strict=True))
        wanted = whole[chosen].tolist(), np.array(table.classes)[chosen].tolist()
        assert found == sorted(zip(map(repr, wanted[0]), wanted[1], strict=True))


def test_the_ink_of_a_digit_becomes_points(
    tmp_path: Path, digit_images: Path, ray_cluster: None, console: Console
) -> None:
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0, 3], pixels[3, 1], pixels[2, 2] = 255, 102, 20
    expected = [[3, 3, 0.01], [1, 0, 0.004]]
    np.testing.assert_allclose(ink_points(pixels), expected, rtol=1e-6)
    values = {
        "data.image": None,
        "data.points": {"num_points": 32},
        "model.adapter": {"kind": "points", "num_bands": 2},
        "model.positions": {},
    }
    config = with_values(base_of_digits(tmp_path), values)
    with pytest.raises(UserError, match="has no folder points/train"):
        make_set(config, POINTS, 0, tmp_path, digit_images, console)
    for split in ("train", "test"):
        for label in "01":
            (tmp_path / "given" / POINTS / split / label).mkdir(parents=True)
            cloud = tmp_path / "given" / POINTS / split / label / "a.npy"
            np.save(cloud, ink_points(np.full((5, 4), 200, np.uint8)))
    found = make_set(config, POINTS, 0, tmp_path, tmp_path / "given", console)
    assert found.manifest.counts == {"train": 2, "test": 2}
    (batch,) = split_loader(config, found, "test")
    assert batch.lengths["points"][batch.weights > 0].tolist() == [20, 20]
    outputs = []

    def logits(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        outputs.append((points.shape, mask.sum(dim=1)[:2].tolist()))
        return torch.zeros(len(points), 2)

    accuracy_on_test(config, found, logits, torch.nn.Identity())
    assert outputs == [(torch.Size([256, 32, 3]), [20, 20])]


def test_tasks_write_the_same_changed_images(
    tmp_path: Path,
    digit_images: Path,
    ray_cluster: None,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = base_of_digits(tmp_path)
    plain = make_set(config, PLAIN, 0, tmp_path, digit_images, console)
    written = []
    for name, alone in (("here", 4), ("tasks", 0)):
        monkeypatch.setattr(image_data, "_PARTS_ALONE", alone)
        monkeypatch.setattr(image_data, "_PART", 250 if alone else 2048)
        write_changed(image_format(config), plain, tmp_path / name, "permuted")
        files = sorted((tmp_path / name).rglob("*.png"))
        written.append({str(f.relative_to(tmp_path / name)): f.read_bytes() for f in files})
    assert len(written[0]) == 360 and written[0] == written[1]


def test_blurred_images_are_smooth(
    tmp_path: Path, digit_images: Path, ray_cluster: None, console: Console
) -> None:
    """A Gaussian keeps the mean and takes away what is finer than itself."""
    config = base_of_digits(tmp_path)
    pictures = {}
    for name in (PLAIN, BLURRED):
        shard_set = make_set(config, name, 0, tmp_path, digit_images, console)
        batch = next(iter(split_loader(config, shard_set, "test")))
        pictures[name] = batch.fields["image"][batch.weights > 0].float()
    plain, blurred = pictures[PLAIN], pictures[BLURRED]
    assert len(plain) == len(blurred) == 60
    assert abs(blurred.mean() - plain.mean()) < 0.1 * plain.mean()
    assert blurred.diff(dim=1).abs().mean() < 0.8 * plain.diff(dim=1).abs().mean()
