"""A study: ranked on validation and only there, one parent run, each trial a nested child."""

import contextlib
import functools
import getpass
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from saved_checkpoints import load
from trainings import final_weights

from cluster import ClusterError
from cluster.interrupts import Terminated
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from pipeline.runs.tracking import begin_run, child_run
from pipeline.training.checkpoints import list_names, read_checkpoint
from pipeline.training.train import train
from pipeline.tuning.journal import Report, StudyJournal
from pipeline.tuning.journal_lines import JOURNAL_FILE
from pipeline.tuning.stopping import GOES_ON
from pipeline.tuning.trials import TRIAL_FILE, stopped_at, trial_folder
from pipeline.tuning.tune import tune
from shards import ShardSet

pytestmark = pytest.mark.usefixtures("ray_cluster")

STUDY = (
    "study={search: grid, num_workers: 1, grace_epochs: 1, epochs: 3, space: "
    "{training.learning_rate: {choice: [3e-3, 1e-6]}}}"
)
ONE_AT_A_TIME = "study.max_concurrent_trials=1"


@pytest.fixture(scope="module")
def done(
    make_config: Callable[..., Config],
    digit_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """A study that was killed in its third trial and went on, and the same command once more.

    The seed draws 3e-3, 1e-6, 3e-3, 1e30 and 1e-6. The second trial is stopped, and the fourth
    fails; the fifth belongs to the study if there are to be as many. All start from the weights of
    `parent`, whose encoder they leave as it is. `config` makes configurations with other fields in
    the same output folder.
    """
    folder = tmp_path_factory.mktemp("study")
    shards = f"shards={digit_shards}"
    parent = make_config(folder, shards, "name=parent", "cluster.num_workers=0")
    with (folder / "told.txt").open("w") as file:
        train(parent, Console(file, file))
    space = STUDY.replace("[3e-3, 1e-6]", "[3e-3, 1e-6, 1e30]").replace("grid", "random")
    init = f"model.init={{from: {parent.folder}, freeze: ['encoder.*']}}"
    config = functools.partial(make_config, folder, shards, space, "seed=373", init)
    chosen = config("study.num_trials=4")
    path = folder / "study.yaml"
    path.write_text(json.dumps(config("study.num_trials=4", ONE_AT_A_TIME).tree()))
    with study_process(path, chosen, trial=2):
        stopped = runs_by_trial(chosen)[1]
    before = reports(chosen)
    with (folder / "told.txt").open("w+") as file:
        result = tune(chosen, Console(file, file))
        file.seek(0)
        told = file.read()
        again = tune(chosen, Console(file, file))
    return SimpleNamespace(
        parent=parent, config=config, result=result, again=again, told=told, stopped=stopped,
        before=before, runs=runs_of(chosen), runs_by_trial=runs_by_trial(chosen),
        reports=reports(chosen),
    )  # fmt: skip


def test_a_study_ranks_its_trials_and_logs_each_as_a_child(done: SimpleNamespace) -> None:
    result = done.result
    rates = [trial["params"]["training.learning_rate"] for trial in result["trials"]]
    assert rates == [3e-3, 3e-3, 1e-6]
    best, same, worst = result["trials"]
    # Their training is the same, though that of the third trial was killed and went on.
    assert (best["id"], same["id"]) == ("00000", "00002")
    assert best["accuracy"] == same["accuracy"] > worst["accuracy"]
    assert result["best"] == best
    for trial in result["trials"]:
        # The accuracy that ranks is the validation accuracy of the checkpoint that is kept.
        state = read_checkpoint(Path(trial["checkpoint"])).state
        assert trial["accuracy"] == state.metrics["val_accuracy"] == state.score
        assert trial["forward_flops"] > 1e6
    with Image.open(result["plot"]) as plot:
        assert plot.format == "PNG"

    client = MlflowClient(done.config().tracking_uri)
    runs = {run.info.run_id: run for run in done.runs if run.info.status == "FINISHED"}
    parent = runs.pop(result["run_id"])
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {result["run_id"]}
    assert set(runs) == {trial["run_id"] for trial in result["trials"]}
    assert parent.data.tags["perceiver.best_trial"] == best["run_id"]
    artifacts = {artifact.path for artifact in client.list_artifacts(result["run_id"])}
    assert {"accuracy_vs_flops.png", "study.json"} <= artifacts
    assert client.get_metric_history(best["run_id"], "val_accuracy")


def test_the_trials_of_a_study_start_from_weights(done: SimpleNamespace) -> None:
    before = final_weights(done.parent)
    encoder = {name for name in before if name.startswith("encoder.")}
    for trial in done.result["trials"]:
        after = load(read_checkpoint(Path(trial["checkpoint"])), "weights")
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert same == encoder != before.keys()
    for run in done.runs_by_trial.values():
        assert str(done.parent.folder) in run.data.tags["perceiver.init"]
    told = "".join(done.told.split())  # the title may be wrapped
    assert f"weightsfromcheckpoint{done.parent.folder}" in told


def test_a_study_that_is_done_is_skipped(done: SimpleNamespace) -> None:
    assert done.again["skipped"]
    assert done.again["trials"] == done.result["trials"]


def test_a_trial_that_fails_is_told_and_the_others_count(done: SimpleNamespace) -> None:
    (failure,) = done.result["failed"]
    assert "not finite" in failure and "training.learning_rate" in failure
    assert sorted(run.info.status for run in done.runs) == ["FAILED", *["FINISHED"] * 4]


def test_a_killed_study_goes_on_from_its_decisions(done: SimpleNamespace) -> None:
    before, after = done.before, done.reports
    ((trial, epoch),) = [(report.trial, report.epoch) for report in before if report.stop]
    assert trial == 1 and epoch < 3
    done_before = [(0, 1), (0, 2), (0, 3), *((1, number) for number in range(1, epoch + 1))]
    assert [(r.trial, r.epoch) for r in before][: 3 + epoch] == done_before
    # The run of the trial that was stopped has its status while the study goes on.
    assert done.stopped.info.status == "FINISHED"
    assert done.stopped.data.tags["perceiver.stopped_at_epoch"] == str(epoch)
    assert "resuming the study" in done.told
    assert "trial 4/4" in done.told
    # Epochs done before count, and those that a trial does not do are not to be done.
    assert f"{6 + epoch}/{6 + epoch}" in done.told
    assert after[: len(before)] == before
    assert len({(report.trial, report.epoch) for report in after}) == len(after)
    assert {report.trial for report in after[len(before) :]} <= {2}
    assert [(r.trial, r.epoch) for r in after if r.trial == 2] == [(2, 1), (2, 2), (2, 3)]
    runs = done.runs_by_trial
    assert len(runs) == len(done.runs) - 1 == 4, "no trial has two runs"
    for run in (runs[0], runs[1], runs[2]):
        assert run.data.tags["mlflow.source.name"].endswith("__main__.py")
        assert run.data.tags["mlflow.user"] == getpass.getuser()
    assert {trial["id"]: trial["stopped_early"] for trial in done.result["trials"]} == {
        "00000": False, "00001": True, "00002": False,
    }  # fmt: skip


def test_a_study_that_is_done_goes_on_with_more_trials(
    done: SimpleNamespace, console: Console
) -> None:
    longer = done.config("study.num_trials=5")
    trial = trial_folder(longer.folder / "tune", 4)
    # Told to stop while the trial's workers start: they save after their first step.
    noted = trial / TRIAL_FILE
    with (
        sent_sigterm(lambda: os.getpid() if noted.is_file() else None),
        pytest.raises(Terminated) as told,
    ):
        tune(longer, console)
    stopped = "trial 4: stopped after step 1, with a checkpoint"
    assert told.value.done == f"{stopped}; {GOES_ON}"
    assert list_names(trial / "checkpoints") == ["step-00000001"]
    assert runs_by_trial(longer)[4].info.status == "KILLED"
    (study,) = [run for run in runs_of(longer) if run.data.tags["perceiver.kind"] == "study"]
    assert study.info.status == "KILLED"
    # Going on, a worker gets the notice before a preemption, and another one goes on from there.
    hurt = done.config("study.num_trials=5", "cluster.max_failures=1")
    with sent_sigterm(lambda: lock_holder(trial)) as workers:
        more = tune(hurt, console)
    assert len(set(workers)) == 2
    # The same settings as those of trial 1, which was not hit.
    scores = [[r.score for r in reports(longer) if r.trial == number] for number in (1, 4)]
    fewest = min(map(len, scores))
    assert scores[0][:fewest] == scores[1][:fewest]
    assert more["run_id"] == done.result["run_id"]
    assert len(more["trials"]) == 4
    assert [t for t in more["trials"] if t["id"] != "00004"] == done.result["trials"]
    before = len(done.reports)
    assert reports(longer)[:before] == done.reports
    assert {report.trial for report in reports(longer)[before:]} == {4}
    assert tune(longer, console)["skipped"]
    with pytest.raises(UserError, match=r"num_trials=5, and study\.num_trials is 4: .* more"):
        tune(done.config("study.num_trials=4"), console)
    with pytest.raises(UserError, match=r"study\.grace_epochs was 1, is 2"):
        tune(done.config("study.num_trials=6", "study.grace_epochs=2"), console)


def runs_of(config: Config) -> list[Any]:
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def runs_by_trial(config: Config) -> dict[int, Any]:
    return {int(run.data.tags["perceiver.trial"]): run for run in runs_of(config)
            if run.data.tags["perceiver.kind"] == "trial"}  # fmt: skip


def reports(config: Config) -> list[Report]:
    folder = config.folder / "tune"
    return StudyJournal(folder).reports if (folder / JOURNAL_FILE).is_file() else []


@contextlib.contextmanager
def study_process(path: Path, config: Config, *, trial: int) -> Iterator[subprocess.Popen[str]]:
    """`perceiver tune` in a process that has reported an epoch of a trial, and is then killed."""
    command = [sys.executable, "-m", "pipeline", "tune", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 900
            while not any(report.trial == trial for report in reports(config)):
                assert process.poll() is None, "the study has ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.kill()
            process.wait()


def lock_holder(trial: Path) -> int | None:
    """The process of the worker that writes to the folder of a trial, if there is one."""
    try:
        return int(json.loads((trial / ".writer.lock").read_text())["pid"])
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def sent_sigterm(process: Callable[[], int | None]) -> Iterator[list[int]]:
    """Send SIGTERM once, as soon as there is a process to send it to.

    Yields:
        A list that takes the processes that there are one after the other.
    """
    seen: list[int] = []
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.02):
            found = process()
            if found is not None and found not in seen:
                seen.append(found)
                if len(seen) == 1:
                    os.kill(found, signal.SIGTERM)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()
    assert seen


def test_the_run_of_a_trial_that_was_killed_before_it_noted_it_is_found(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path
) -> None:
    config = make_config(tmp_path, f"shards={digit_shards}")
    shard_set = ShardSet.open(digit_shards)
    parent = begin_run(config, kind="study", shard_set=shard_set)
    children = [
        begin_run(config, kind="trial", shard_set=shard_set, parent_run_id=parent.run_id,
                  tags={"perceiver.trial": str(number)})
        for number in (1, 11)
    ]  # fmt: skip
    assert child_run(parent, {"perceiver.trial": "1"}) == children[0].run_id
    assert child_run(parent, {"perceiver.trial": "2"}) is None


def test_a_trial_stopped_at_its_last_epoch_has_reached_its_end(tmp_path: Path) -> None:
    journal = StudyJournal(tmp_path)
    journal.append(Report(0, 4, 0.5, True))
    journal.append(Report(1, 2, 0.5, True))
    journal.append(Report(2, 4, 0.5, False))
    assert [stopped_at(journal, number, 4) for number in range(3)] == [None, 2, None]


def test_a_split_column_gives_a_study_its_validation_split(
    make_config: Callable[..., Config], digit_images: Path, tmp_path: Path, console: Console
) -> None:
    def config(name: str, *splits: str) -> Config:
        files = sorted((digit_images / "train").glob("*/*.png"))[::5]
        rows = [f"{file},{file.parent.name},{splits[number % len(splits)]}"
                for number, file in enumerate(files)]  # fmt: skip
        listing = digit_images / f"{name}.csv"
        listing.write_text("\n".join(["path,kind,split", *rows]))
        columns = "data.columns={image: path, split: split}"
        chosen = make_config(
            tmp_path, f"name={name}", f"data.train={listing}", "data.validation=null", columns,
            "data.target.column=kind",
            "training.batch_size=64", STUDY.replace("num_workers: 1", "num_workers: 64"),
        )  # fmt: skip
        preprocess(chosen, console)
        return chosen

    # It gets as far as to ask for the workers.
    with pytest.raises(ClusterError, match="a trial needs 64 CPUs"):
        tune(config("both", "train", "train", "validation"), console)
    with pytest.raises(UserError, match=r"data\.columns\.split=split: .* no usable row"):
        tune(config("one", "train"), console)


def test_without_a_validation_part_a_study_is_refused(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    config = make_config(tmp_path, f"shards={digit_shards}", STUDY, "data.validation=null")
    with pytest.raises(UserError, match=r"data\.validation.*ranks its trials"):
        tune(config, console)


def test_trials_that_the_cluster_can_never_hold_are_refused(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    shards = f"shards={digit_shards}"
    too_wide = make_config(tmp_path, shards, STUDY.replace("num_workers: 1", "num_workers: 64"),
                           "training.batch_size=64")  # fmt: skip
    with pytest.raises(ClusterError, match=r"a trial needs 64 CPUs.*study\.num_workers"):
        tune(too_wide, console)
    too_many = make_config(
        tmp_path,
        shards,
        STUDY.replace("num_workers: 1", "num_workers: 1, max_concurrent_trials: 99"),
    )
    with pytest.raises(ClusterError, match="max_concurrent_trials=99"):
        tune(too_many, console)
