"""`perceiver study`: what it refuses, that a killed study goes on, and what its page says."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.config.training import AugmentConfig
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.studies.conduct import conduct, trial_resources
from pipeline.studies.costs import TIMES
from pipeline.studies.page import write_study
from pipeline.studies.planning import base_config, bases_of, definition_digest
from pipeline.studies.questions.permuted import FOURIER, LEARNED
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.study import Arm, Pair, Pool, Study
from pipeline.studies.summary import by_label, found_of, pooled
from pipeline.studies.works.table import WORKS

OVERRIDES = ("data.image.height=8", "data.image.width=8", "training.batch_size=64")
OURS, PEER = "ours", "a ViT"
ABOUT = {
    "scale": "small",
    "seeds": 3,
    "first_seed": 0,
    "overrides": [],
    "command": "perceiver study permuted --scale small",
    "data": "some images",
    "machine": "a machine",
    "versions": "torch 2",
    "date": "2026-01-01",
    "minutes": 3.0,
}


def two_arms() -> Study:
    """The study of permuted pixels with two of its arms."""
    return replace(
        STUDIES["permuted"],
        arms=(Arm(OURS, costs=True), Arm(PEER, peer="vit")),
        pairs=(Pair(PEER, OURS),),
        answer=lambda found: f"{PEER} {100 * found.difference(PEER, OURS).mean:+.1f} points",
    )


DRIVER = """
    import sys
    from pathlib import Path
    import test_studies
    from pipeline.runs.console import Console
    from pipeline.studies.conduct import conduct
    from pipeline.studies.questions.table import STUDIES

    STUDIES["permuted"] = test_studies.two_arms()
    conduct(test_studies.request(*map(Path, sys.argv[1:3])), Console(sys.stdout, sys.stderr))
"""


def request(output: Path, data: Path) -> Request:
    """A study of four trainings, of 8 × 8 pixels."""
    return Request(
        "permuted", scale="tiny", output=str(output), data=data, device="cpu", overrides=OVERRIDES
    )


@pytest.fixture
def two_arm_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "permuted", two_arms())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["permutted"], "'permutted': there is no such study; did you mean 'permuted'?"),
        (["permuted", "--seeds", "1"], "--seeds 1: an interval takes at least 2"),
        (["ablations", "--scale", "full"], "--scale full: give --data FOLDER"),
        (["ablations", "--data", "nowhere"], "--data nowhere: has no folder train"),
        (["ablations", "seed=3"], "seed: the study sets it itself"),
        (["ablations", "cluster.num_workers=2"], "cluster.num_workers: the study sets it itself"),
        (["ablations", "training.epoch=3"], "did you mean 'epochs'?"),
        (["ablations", "--device", "cuda"], "--device cuda: Ray sees no GPU here"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["study", *arguments, "--output", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert len([line for line in said.splitlines() if line.startswith("perceiver study:")]) == 1


def test_a_study_that_no_trial_could_train_is_refused_before_any_begins(
    tmp_path: Path, digit_images: Path, ray_cluster: None, two_arm_study: None, console: Console
) -> None:
    asked = replace(
        request(tmp_path, digit_images), overrides=(*OVERRIDES, "training.batch_size=512")
    )
    with pytest.raises(UserError, match="has only 300 training samples"):
        conduct(asked, console)
    assert not (tmp_path / "study-permuted-tiny" / "trainings").exists()


def test_trials_take_cpus_for_their_readers(ray_cluster: None) -> None:
    import ray

    cpus = int(ray.cluster_resources()["CPU"])
    assert trial_resources("cpu", 0) == ({"num_cpus": 1}, cpus)
    assert trial_resources("cpu", 1) == ({"num_cpus": 2}, cpus // 2)
    assert trial_resources("cpu", 1000) == ({"num_cpus": cpus}, 1)


def test_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["studies"]
    assert {each["name"] for each in listed} == set(STUDIES) >= {"ablations", "permuted"}
    assert all(each["question"].endswith("?") for each in listed)


@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_whole(name: str, scale: str) -> None:
    study = STUDIES[name].at_scale(scale)
    labels = [label for arm in study.arms for label in (arm.label, *arm.also)]
    assert len(set(labels)) == len(labels)
    lines = {arm.label: arm.line[0] for arm in study.arms if arm.line}
    shown = {lines.get(label, label) for label in labels}
    pools = {pool.label: pool.arms for pool in study.pools}
    assert not pools.keys() & shown
    compared = {label for pair in study.pairs for label in (pair.arm, pair.base)}
    assert pools.keys() <= compared
    members = {label for each in compared for label in pools.get(each, (each,))}
    assert members == shown
    names = [metric.name for metric in study.metrics]
    assert len(set(names)) == len(names)
    assert {pair.metric for pair in study.pairs} <= {None, *names}
    assert len(set(study.pairs)) == len(study.pairs)
    assert {arm.work for arm in study.arms} <= {None, *WORKS}
    assert study.scales["small"].seeds >= 5
    base = base_config(Request(name, output="runs"), study.scales[scale])
    assert base.training.augment == AugmentConfig() or study.scales[scale].needs_data
    bases = bases_of(study, study.scales[scale], base, ())
    assert all(arm.config(bases[arm.data]).trained_for for arm in study.arms)


def some_results(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Results of all arms from three seeds: every metric, and curves where the study has them."""
    random = np.random.default_rng(0)
    numbers = {pair.at for pair in study.pairs if pair.at is not None} | {1, 2}

    def row(arm: Arm) -> dict[str, Any]:
        curves = [each for each in study.metrics if each.along and not arm.line]
        found: dict[str, Any] = {each.name: random.uniform() for each in study.metrics}
        if arm.costs:
            names = [f"{name}_x{k}" for name in ("step_ms", "infer_ms", "step_mib") for k in TIMES]
            found |= dict.fromkeys(names, 2.0)
        return found | {each.name: {n: random.uniform() for n in numbers} for each in curves}

    return {
        arm.label: [{**row(arm), "also": {each: row(arm) for each in arm.also}} for _ in range(3)]
        for arm in study.arms
    }


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_study_answers_whatever_was_found(study: Study, tmp_path: Path) -> None:
    results = by_label(study, some_results(study))
    found = found_of(study, results)
    answer = study.answer(found)
    assert "\n" not in answer and not answer.endswith(".")
    first = study.pairs[0]
    difference = found.difference(first.arm, first.base, first.metric, first.at)
    metric = next(each for each in study.metrics if each.name == difference.metric)
    assert metric.shown_difference(difference.mean, ".1f") in answer
    page = write_study(tmp_path, study, found, results, ABOUT).read_text()
    assert study.section is None or study.section(found) in page
    figures = re.findall(r"\((\S+\.svg)\)", page)
    assert sorted(figures) == sorted(path.name for path in tmp_path.glob("*.svg"))


def test_a_pool_is_the_mean_of_its_arms_seed_by_seed() -> None:
    rows = {
        "a": [{"accuracy": 0.5, "label": "a"}, {"accuracy": 0.7, "label": "a"}],
        "b": [{"accuracy": 1.0, "label": "b"}, {"accuracy": 0.9, "label": "b"}],
    }
    assert pooled(Pool("both", ("a", "b")), rows) == [
        {"accuracy": 0.75},
        {"accuracy": pytest.approx(0.8)},
    ]


def test_what_the_person_asks_for_goes_before_what_the_scale_does_for_one_table() -> None:
    study, asked = STUDIES["tables"], ("training.epochs=3",)
    scale = study.scales["small"]
    base = base_config(Request("tables", output="runs", overrides=asked), scale)
    assert {each.training.epochs for each in bases_of(study, scale, base, asked).values()} == {3}
    plain = bases_of(study, scale, base_config(Request("tables", output="runs"), scale), ())
    assert plain["wine"].training.epochs == scale.by_data["wine"]["training.epochs"]
    assert plain["wine"].data.formats.keys() == {"table"}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("ablations", ("latents × 4", "nothing shared")),
        ("permuted", (FOURIER, LEARNED)),
        ("fourier", ("points, bands × 4",)),
        ("linear-cost", ("Perceiver, 50,176 tokens",)),
        ("peers", ("Perceiver",)),
    ],
)
def test_the_largest_arms_of_the_full_scale_fit_an_h100(
    name: str, labels: tuple[str, ...], console: Console
) -> None:
    from pipeline.plan.plan import plan
    from pipeline.plan.request import Request as PlanRequest

    study = STUDIES[name].at_scale("full")
    scale = study.scales["full"]
    bases = bases_of(study, scale, base_config(Request(name, output="runs"), scale), ())
    for arm in study.arms:
        if arm.label in labels:
            config = arm.config(bases[arm.data], {"cluster.use_gpu": True})
            found = plan(config, console, PlanRequest(gpu="h100", samples=1_281_167, classes=1000))
            assert not found["problems"], arm.label


def test_a_killed_study_goes_on_and_trains_nothing_twice(
    tmp_path: Path, digit_images: Path, ray_cluster: None, two_arm_study: None, console: Console
) -> None:
    results = tmp_path / "runs" / "study-permuted-tiny" / "results"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path / "runs")]
    driver = subprocess.Popen([*command, str(digit_images)], env=environment)
    deadline = time.monotonic() + 240
    while not list(results.glob("*.json")) and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    time.sleep(2)  # Ray's processes notice
    before = {path: path.read_text() for path in results.glob("*.json")}
    assert 1 <= len(before) < 4

    found = conduct(request(tmp_path / "runs", digit_images), console)
    assert (found["trained"], found["skipped"]) == (4 - len(before), len(before))
    assert {path: path.read_text() for path in before} == before
    written = [json.loads(path.read_text()) for path in results.glob("*.json")]
    assert sorted(each["label"] for each in written) == [PEER, PEER, OURS, OURS]
    assert all(("step_ms_x2" in each) == (each["label"] == OURS) for each in written)
    has_nested_runs(tmp_path / "runs", found)
    page = Path(found["page"]).read_text()
    for label in (OURS, PEER):
        assert f"| {label} | {100 * found['means'][label]['mean']:.2f} |" in page

    again = conduct(request(tmp_path / "runs", digit_images), console)
    assert (again["trained"], again["skipped"]) == (0, 4)
    assert again["means"] == found["means"]
    assert again["run_id"] == found["run_id"]


def has_nested_runs(output: Path, found: dict[str, Any]) -> None:
    """The trainings are nested in the study's run, with their numbers."""
    from pipeline.config.sqlite_uri import sqlite_uri
    from pipeline.runs.mlflow_client import client

    mlflow_client = client(sqlite_uri(output / "mlflow.db"))
    parent = mlflow_client.get_run(found["run_id"])
    assert parent.info.status == "FINISHED"
    wish = f"tags.`mlflow.parentRunId` = '{found['run_id']}'"
    nested = mlflow_client.search_runs([parent.info.experiment_id], filter_string=wish)
    told = {
        (run.data.tags["perceiver.arm"], run.data.tags["perceiver.seed"])
        for run in nested
        if "study_accuracy" in run.data.metrics
    }
    assert told == {(label, seed) for label in (OURS, PEER) for seed in "01"}


def test_a_changed_definition_has_another_digest() -> None:
    base = base_config(Request("permuted", output="runs"), STUDIES["permuted"].scales["tiny"])
    arm, peer = Arm("a"), Arm("a", peer="vit")
    digest = definition_digest(arm, base, "data", "cpu")
    longer = base.model_copy(update={"training": base.training.model_copy(update={"epochs": 3})})
    elsewhere = base.model_copy(update={"output": "/elsewhere", "name": "other"})
    assert definition_digest(arm, elsewhere, "data", "cpu") == digest
    assert digest not in {
        definition_digest(arm, longer, "data", "cpu"),
        definition_digest(arm, base, "other data", "cpu"),
        definition_digest(peer, base, "data", "cpu"),
        definition_digest(arm, base.model_copy(update={"seed": 9}), "data", "cpu"),
    }
