"""`perceiver evaluate`: its numbers, its reports, and what it refuses."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from gate_bench import ROWS, VALIDATION, Bench, anew
from gate_runs import CLASSES, NAME, track
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from pipeline.cli.main import main
from pipeline.config.load import with_values
from pipeline.errors import UserError
from pipeline.evaluation.class_numbers import Renumbering
from pipeline.evaluation.evaluate import evaluate
from pipeline.inputs.batches import TARGET
from pipeline.registry.champions import load_registered
from pipeline.runs.console import Console
from shards import Sample, ShardError, publish, write_shard
from shards.loader import ShardBatch
from shards.remote_tars import default_cache_folder


class Page(HTMLParser):
    """The elements of a page, their text, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = ("src", "href", "action", "data", "srcset", "poster", "background")
        self.addresses += [value or "" for name, value in attrs if name in named]

    def handle_data(self, data: str) -> None:
        self.words += data


def evaluated(bench: Bench, *arguments: str) -> tuple[dict[str, Any], str]:
    """The result of the command line, as JSON, and its HTML."""
    files = bench.output / "result.json", bench.output / "result.html"
    track(bench.first.tracking_uri)
    options = ("--json", str(files[0]), "--html", str(files[1]), "--output", str(bench.output))
    assert main(["evaluate", *arguments, *options]) == 0
    return json.loads(files[0].read_text()), files[1].read_text()


@pytest.fixture(scope="module")
def digit_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of images, of which only the manifest is read."""
    folder = tmp_path_factory.mktemp("images")
    samples = [Sample("k", {"image.npy": b"0"}, 0, "validation/0.png", "0" * 64)]
    write_shard(folder / "staging", 0, "validation", samples)
    identity = {"data.image": {"height": 4, "width": 4, "channels": 1}}
    publish(
        folder / "staging", folder / "set", numbers=[0], config=identity, input_digest="0" * 64,
        classes=("a",), positions=[],
    )  # fmt: skip
    return folder / "set"


@pytest.fixture
def truth() -> np.ndarray:
    return np.array([CLASSES.index(row["label"]) for row in VALIDATION])


def answers(bench: Bench) -> np.ndarray:
    """The probabilities of the registered model, row by row."""
    version = bench.client.get_model_version_by_alias(NAME, "champion")
    predictor = load_registered(bench.client, version).predictor
    rows = [{key: row[key] for key in ("x", "kind")} for row in VALIDATION]
    found = predictor.predict(rows)
    return np.array([[each.probabilities[name] for name in CLASSES] for each in found])


def test_a_run_gets_every_number_of_scikit_learn_and_a_report(
    bench: Bench, truth: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = {name: tensor.clone() for name, tensor in bench.made["poor"].items()}
    weights["head.output.bias"][2] = -20.0  # a class that is never answered, and no infinite loss
    run_id = bench.run(weights)
    bench.promote(run_id)
    result, page = evaluated(bench, run_id)
    shares = answers(bench)
    told = shares.argmax(axis=1)
    losses = -np.log(shares[np.arange(len(truth)), truth])
    assert result["metrics"] == pytest.approx(
        {
            "loss": losses.mean(),
            "accuracy": accuracy_score(truth, told),
            "macro_f1": f1_score(truth, told, average="macro"),
        },
        abs=1e-6,
    )
    assert result["samples"] == len(VALIDATION)
    columns = precision_recall_fscore_support(truth, told, labels=range(3), zero_division=0)
    for number, name in enumerate(CLASSES):
        own = [float(column[number]) for column in columns]
        names = ("precision", "recall", "f1", "support")
        expected = dict(zip(names, own, strict=True))
        assert result["classes"][number].pop("name") == name
        assert result["classes"][number] == pytest.approx(expected, abs=1e-9)
    assert result["confusion_matrix"]["counts"] == confusion_matrix(truth, told).tolist()
    ece = multiclass_calibration_error(torch.tensor(shares), torch.tensor(truth), 3, n_bins=15)
    assert result["calibration"]["error"] == pytest.approx(float(ece), abs=1e-6)
    assert sum(bin["items"] for bin in result["calibration"]["bins"]) == len(truth)

    worst = np.argsort(-losses, kind="stable")[:25]
    assert [each["number"] for each in result["worst"]] == worst.tolist()
    for each, number in zip(result["worst"], worst, strict=True):
        assert each["source"] == f"validation/{number}"
        assert each["loss"] == pytest.approx(losses[number], rel=1e-4)
        assert each["target"] == CLASSES[truth[number]]
        assert each["answer"]["class"] == CLASSES[told[number]]
        view = each["attention"]["table"]
        assert {part["part"] for part in view["parts"]} == {"x", "kind"}
        assert sum(part["weight"] for part in view["parts"]) == pytest.approx(1, abs=1e-5)

    found = Page(page)
    assert all(address.startswith("data:") for address in found.addresses)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "script" not in found.tags and "svg" in found.tags
    for word in ("confusion matrix", "Calibration", *CLASSES, result["worst"][0]["source"]):
        assert word.lower() in found.words.lower()

    metrics = bench.client.get_run(run_id).data.metrics
    assert metrics["evaluate_validation_accuracy"] == result["metrics"]["accuracy"]
    assert metrics["evaluate_validation_calibration_error"] == result["calibration"]["error"]
    stored = bench.client.list_artifacts(run_id, "evaluations/evaluate_validation")
    assert [Path(each.path).name for each in stored] == ["report.html", "report.json"]
    version = bench.client.get_model_version_by_alias(NAME, "champion")
    tag = version.tags["perceiver.evaluate_validation.accuracy"]
    assert float(tag) == result["metrics"]["accuracy"]
    told_on_console = capfd.readouterr().out
    assert "by class" in told_on_console and "expected calibration error" in told_on_console

    # The registered version, by any of its names, and the folder of the run, answer alike.
    for named in (f"models:/{NAME}@champion", NAME, f"{NAME}/1"):
        again, _ = evaluated(bench, named, "--split", "validation")
        assert again["metrics"] == pytest.approx(result["metrics"], abs=1e-6)
        assert again["model"] == f"{NAME} version 1"


def test_a_set_may_have_fewer_classes_in_another_order(bench: Bench, truth: np.ndarray) -> None:
    run_id = bench.run("good")
    whole, _ = evaluated(bench, run_id)
    chosen = [row for row in VALIDATION if row["label"] != "odd"]
    train = [row for row in ROWS[:480] if row["label"] != "odd"]
    config = anew(bench, "other", train, chosen, classes=("low", "high"))
    found, _ = evaluated(bench, run_id, config.shards_folder)
    assert found["samples"] == len(chosen) < len(VALIDATION)
    matrix, own = (np.array(each["confusion_matrix"]["counts"]) for each in (found, whole))
    assert found["confusion_matrix"]["classes"] == list(CLASSES)
    assert matrix[:2].tolist() == own[:2].tolist() and not matrix[2].any()
    assert found["logged"] == f"evaluate_{found['digest'][:8]}_validation"

    unknown = anew(bench, "unknown", ROWS[:480], ROWS[480:], classes=(*CLASSES, "new"))
    with pytest.raises(UserError, match=r"has the classes new, which the model does not know"):
        evaluate(bench.client, run_id, Console(), given_set=unknown.shards_folder)


def test_shards_of_a_remote_set_are_kept_where_the_run_or_an_override_says(
    bench: Bench, s3_bucket: str, tmp_path: Path
) -> None:
    url, own, given = f"{s3_bucket}/{tmp_path.name}", tmp_path / "own", tmp_path / "given"
    fsspec.filesystem("s3").put(bench.first.shards_folder, url, recursive=True)
    config = with_values(bench.first, {"shards": url, "data.cache_folder": str(own)})
    run_id = bench.run("good", config)
    default = default_cache_folder()
    before = sorted(default.rglob("*"))

    def kept(folder: Path) -> int:
        """The number of whole shards in a cache, which is emptied."""
        found = [path for path in folder.rglob("*") if len(path.name) == 64 and path.is_file()]
        shutil.rmtree(folder, ignore_errors=True)
        return len({path.name for path in found})

    evaluated(bench, run_id)
    assert (kept(own), kept(given)) == (1, 0)
    evaluated(bench, run_id, f"data.cache_folder={given}")
    assert (kept(own), kept(given)) == (0, 1)
    with pytest.raises(ShardError, match=r"the cache has 1000; allow it more"):
        evaluate(bench.client, run_id, Console(), overrides=["data.cache_gigabytes=1e-6"])
    kept(own)
    bench.promote(run_id)
    assert kept(own) == 2, "it reads the training samples, too"
    assert sorted(default.rglob("*")) == before


def test_labels_and_masks_get_the_numbers_of_the_model() -> None:
    given = {"stored": ("b", "a"), "known": ("a", "x", "b"), "where": "set"}
    marks = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    assert renumbered("multi_label", marks, **given).tolist() == [[0, 0, 1], [1, 0, 0]]
    mask = torch.tensor([[[0, 1], [255, 0]]], dtype=torch.uint8)
    assert renumbered("mask", mask, **given).tolist() == [[[2, 0], [255, 2]]]


def renumbered(target: str, array: torch.Tensor, **given: Any) -> torch.Tensor:
    size = len(array)
    batch = ShardBatch(
        {TARGET: array}, {}, torch.full((size,), -1), torch.ones(size), torch.arange(size), (), 0
    )
    return Renumbering.between(target, **given).of(batch).fields[TARGET]


HOSTILE = "<script>alert(1)</script>\"'&<img src=http://x/y>"


def test_names_of_a_set_are_escaped_in_the_page(bench: Bench) -> None:
    classes = (HOSTILE, "low", "odd")
    rows = [{**row, "label": HOSTILE if row["label"] == "high" else row["label"]} for row in ROWS]
    config = anew(bench, "hostile", rows[:480], rows[480:], classes=classes)
    run_id = bench.run("good", config)
    _, page = evaluated(bench, run_id)
    found = Page(page)
    assert "script" not in found.tags and HOSTILE in found.words
    assert all(address.startswith("data:") for address in found.addresses)


def refused(capsys: pytest.CaptureFixture[str], bench: Bench, *arguments: str) -> str:
    """The one line that refuses a command."""
    track(bench.first.tracking_uri)
    assert main(["evaluate", *arguments, "--output", str(bench.output)]) == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("perceiver")
    ]
    return line


def test_what_does_not_fit_is_refused_by_one_line(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path, digit_set: Path
) -> None:
    run_id = bench.run("good")
    assert "no split 'test'; it has" in refused(capsys, bench, run_id, "--split", "test")
    assert "holds other input than the model takes" in refused(
        capsys, bench, run_id, str(digit_set)
    )
    assert "there is no model 'other'" in refused(capsys, bench, "other")
    assert "MLflow has no such run" in refused(capsys, bench, "0" * 32)
    assert "is not the folder of a run" in refused(capsys, bench, str(tmp_path))
    assert "training.epochs: has no effect on an evaluation" in refused(
        capsys, bench, run_id, "training.epochs=3"
    )
    assert "give one shard set at most" in refused(capsys, bench, run_id, "a", "b")
    assert not [*bench.first.folder.glob(".evaluate*")]
