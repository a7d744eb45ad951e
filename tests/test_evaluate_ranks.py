"""Evaluations by two workers give the numbers of one, and those of scikit-learn."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_metrics
import torch
from gate_bench import VALIDATION, Bench
from gate_runs import CLASSES
from saved_checkpoints import one_rank
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    jaccard_score,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
    top_k_accuracy_score,
)

from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.config import EncoderConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.evaluation.class_numbers import Renumbering
from pipeline.evaluation.worker import EvaluationTask, evaluate_on_rank
from pipeline.registry.reading import Reading
from pipeline.registry.run_model import card_of
from pipeline.training.checkpoints import read_checkpoint
from pipeline.training.objectives import Objective
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.multi_label import MultiLabel
from pipeline.training.objectives.regression import Regression
from pipeline.training.objectives.segmentation import Segmentation
from shards import RemoteReading, ShardSet

PARTS: dict[str, Any] = {
    "input": ImageInput(height=2, width=2),
    "adapter": PixelsConfig(),
    "encoder": EncoderConfig(
        num_latents=4, latent_dim=16, num_blocks=1, num_cross_attends=1, num_self_attends=1
    ),
}
NAMES = tuple("abcdefgh")
FIT = ClassifierConfig(**PARTS, num_classes=len(NAMES))
OBJECTIVES: dict[str, Objective] = {
    "classify": Classification(FIT, NAMES),
    "multi_label": MultiLabel(FIT, NAMES, threshold=0.4),
    "segment": Segmentation(DenseConfig(**PARTS, output_channels=len(NAMES)), NAMES),
    # Numbers far from 0, whose squares lose the digits that R² needs.
    "regress": Regression(
        QueriesConfig(**PARTS, num_queries=2, output_channels=1),
        ("year", "b"), means=(2e6, -2.0), stds=(0.5, 4.0),
    ),
}  # fmt: skip
SIZE = 23


def fields_of(targets: torch.Tensor, rows: slice, padding: int) -> dict[str, Any]:
    """The fields of a batch of some samples, and of padding after them."""
    own = targets[rows]
    size = len(own) + padding
    whole = torch.cat([own, own.new_zeros(padding, *own.shape[1:])])
    return {
        "inputs": torch.zeros(size, 2, 2, 3),
        "mask": None,
        "targets": whole,
        "target_lengths": torch.ones(size, dtype=torch.int64),
        "weights": torch.tensor([1.0] * len(own) + [0.0] * padding),
        "numbers": torch.arange(size),
    }


def data_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and targets of samples. Two classes have no target, and one of them no answer."""
    draw = torch.Generator().manual_seed(len(name))
    num = len(NAMES)
    if name == "regress":
        offsets = torch.tensor([2e6, -2.0], dtype=torch.float64)
        targets = torch.randn(SIZE, 2, generator=draw).double() * torch.tensor([0.5, 4.0]) + offsets
        return torch.randn(SIZE, 2, generator=draw) * 0.7, targets
    shape = (SIZE, 2, 2, num) if name == "segment" else (SIZE, num)
    outputs = torch.randn(*shape, generator=draw)
    outputs[..., -1] = -30.0
    if name == "multi_label":
        marks = torch.rand(SIZE, num, generator=draw) < 0.3
        marks[:, -2:] = False
        marks[:, 0] = True
        return outputs, marks.to(torch.uint8)
    targets = torch.randint(0, num - 2, shape[:-1], generator=draw)
    outputs = outputs + 1.5 * torch.nn.functional.one_hot(targets, num)
    return outputs, targets.to(torch.uint8) if name == "segment" else targets


def cases_of(parts: list[tuple[slice, int]]) -> rank_metrics.Cases:
    cases: rank_metrics.Cases = {}
    for name, objective in OBJECTIVES.items():
        outputs, targets = data_of(name)
        batches = []
        for rows, padding in parts:
            padded = torch.cat([outputs[rows], outputs.new_zeros(padding, *outputs.shape[1:])])
            batches.append((padded, fields_of(targets, rows, padding)))
        cases[name] = objective, batches
    return cases


def of_two_processes(folder: Path, cases: Any, tasks: Any) -> list[Any]:
    (folder / "given").write_bytes(pickle.dumps((cases, tasks)))
    command = [sys.executable, rank_metrics.__file__]
    started = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return [pickle.loads((folder / f"found-{rank}").read_bytes()) for rank in range(2)]


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal, and their numbers equal to 1e-6."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a == pytest.approx(b, abs=1e-6, nan_ok=True)
    return bool(a == b)


def test_two_workers_find_what_one_finds_and_scikit_learn(tmp_path: Path, bench: Bench) -> None:
    # The second rank has fewer batches of samples, one of them of padding only, or no sample.
    uneven = [
        cases_of([(slice(0, 9), 0), (slice(9, 18), 0)]),
        cases_of([(slice(18, 23), 4), (slice(23, 23), 9)]),
    ]
    empty = [cases_of([(slice(0, 23), 0)]), cases_of([(slice(23, 23), 9)])]
    given = [
        {f"{kind}-{name}": case for kind, ranks in (("uneven", uneven), ("empty", empty))
         for name, case in ranks[rank].items()}
        for rank in range(2)
    ]  # fmt: skip
    with one_rank():
        single = rank_metrics.measured(cases_of([(slice(0, 23), 0)]))

    run_id = bench.run("poor")
    checkpoint = Path(bench.client.get_run(run_id).data.tags["perceiver.checkpoint"])
    read_checkpoint(checkpoint).export_model(tmp_path / "model.safetensors")
    shard_set = ShardSet.open(bench.first.shards_folder)
    card = card_of(bench.first, shard_set)
    task = EvaluationTask(
        objective=card.objective, reading=Reading(card.media, card.media), is_stream=False,
        renumbering=Renumbering("class", (0, 1, 2), 3), location=shard_set.location,
        remote=RemoteReading(), split="validation", folder=str(tmp_path), token="",
        batch_size=11, loader_workers=0, precision="float32", attention_path="auto",
        max_bad_fraction=0.5, worst=25,
    )  # fmt: skip
    # 120 samples: the last batch has 10 for the first rank and none for the second.
    with one_rank() as alone:
        whole = evaluate_on_rank(task, alone)
    both = of_two_processes(tmp_path, given, [task, replace(task, worst=3)])
    first, second = (found for found, _ in both)
    for name in given[0]:
        expected = single[name.partition("-")[2]]
        assert same(first[name], expected), name
        assert same(second[name][0], expected[0]) and second[name][1] is None

    (again, few), nothing = both[0][1], both[1][1]
    assert nothing == [None, None]
    assert len(VALIDATION) == 120 and whole is not None
    assert same(again, whole)
    assert [each["number"] for each in few["worst"]] == [
        each["number"] for each in whole["worst"][:3]
    ]
    assert {each["name"] for each in again["classes"]} == set(CLASSES)
    check_by_scikit_learn({name: found[0] for name, found in single.items()}, single)


def check_by_scikit_learn(metrics: dict[str, dict[str, float]], single: dict[str, Any]) -> None:
    outputs, targets = (part.numpy() for part in data_of("classify"))
    told = outputs.argmax(axis=1)
    shares = torch.from_numpy(outputs).double().softmax(dim=1).numpy()
    assert metrics["classify"] == pytest.approx(
        {
            "val_loss": -np.log(shares[np.arange(SIZE), targets]).mean(),
            "val_accuracy": (told == targets).mean(),
            "val_macro_f1": f1_score(targets, told, average="macro"),
            "val_top5_accuracy": top_k_accuracy_score(targets, outputs, k=5, labels=range(8)),
        },
        abs=1e-6,
    )

    outputs, marks = data_of("multi_label")
    probabilities, marks = outputs.double().sigmoid().numpy(), marks.numpy().astype(bool)
    precisions = [average_precision_score(marks[:, n], probabilities[:, n]) for n in range(6)]
    areas = [roc_auc_score(marks[:, n], probabilities[:, n]) for n in range(1, 6)]
    found = metrics["multi_label"]
    assert found["val_mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found["val_mean_auc"] == pytest.approx(np.mean(areas), abs=1e-6)
    labels = single["multi_label"][1]["classes"]
    assert [label["average_precision"] for label in labels[:6]] == pytest.approx(precisions)
    assert [label["auc"] for label in labels] == [None, *map(pytest.approx, areas), None, None]
    answers = probabilities >= 0.4
    for number, label in enumerate(labels):
        f1 = f1_score(marks[:, number], answers[:, number], zero_division=0)
        assert label["f1"] == pytest.approx(f1)
    assert labels[-1]["average_precision"] is None and labels[-1]["support"] == 0

    outputs, masks = data_of("segment")
    told, true = outputs.argmax(dim=-1).numpy().ravel(), masks.numpy().ravel()
    union = np.union1d(told, true)
    assert metrics["segment"]["val_mean_iou"] == pytest.approx(
        jaccard_score(true, told, average="macro", labels=union), abs=1e-6
    )

    outputs, numbers = data_of("regress")
    numbers = numbers.numpy()
    answered = outputs.double().numpy() * (0.5, 4.0) + (2e6, -2.0)
    found = metrics["regress"]
    assert found["val_r2"] == pytest.approx(r2_score(numbers, answered), abs=1e-6)
    assert found["val_mae"] == pytest.approx(np.abs(answered - numbers).mean(), abs=1e-6)
    each = root_mean_squared_error(numbers, answered, multioutput="raw_values")
    assert found["val_rmse"] == pytest.approx(np.sqrt((each**2).mean()), abs=1e-6)
    for number, own in enumerate(single["regress"][1]["classes"]):
        one = numbers[:, number], answered[:, number]
        assert own["r2"] == pytest.approx(r2_score(*one), abs=1e-6)
        assert own["rmse"] == pytest.approx(each[number], abs=1e-6)
