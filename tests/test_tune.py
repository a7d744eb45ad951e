"""A study: ranked on validation and only there, one parent run, each trial a nested child."""

import contextlib
import functools
import getpass
import json
import os
import signal
import sys
import threading
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
from pipeline.tuning import stopping
from pipeline.tuning.journal import Report, StudyJournal
from pipeline.tuning.journal_lines import JOURNAL_FILE
from pipeline.tuning.report import report
from pipeline.tuning.stopping import GOES_ON
from pipeline.tuning.trials import TRIAL_FILE, stopped_at, trial_folder
from pipeline.tuning.tune import tune
from shards import ShardSet

pytestmark = pytest.mark.usefixtures("ray_cluster")

STUDY = (
    "study={search: grid, num_workers: 1, grace_epochs: 1, epochs: 3, space: "
    "{training.learning_rate: {choice: [3e-3, 1e-6]}}}"
)


@pytest.fixture(scope="module")
def done(
    make_config: Callable[..., Config],
    digit_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """A study of two trials that was told to stop, went on, lost a worker, and got a third trial.

    The seed draws 3e-3, 1e-6 and 1e30. The second trial is stopped by ASHA, and the third one
    fails. All start from the weights of `parent`, whose encoder they leave as it is. `config` makes
    configurations with other fields in the same output folder.
    """
    folder = tmp_path_factory.mktemp("study")
    shards = f"shards={digit_shards}"
    parent = make_config(folder, shards, "name=parent", "cluster.num_workers=0")
    with (folder / "told.txt").open("w") as file:
        train(parent, Console(file, file))
    space = STUDY.replace("[3e-3, 1e-6]", "[3e-3, 1e-6, 1e30]").replace("grid", "random")
    init = f"model.init={{from: {parent.folder}, freeze: ['encoder.*']}}"
    one_at_a_time = "study.max_concurrent_trials=1"
    config = functools.partial(make_config, folder, shards, space, "seed=20", init, one_at_a_time)
    two = config("study.num_trials=2")
    trial = trial_folder(two.folder / "tune", 0)
    with (folder / "told.txt").open("w+") as file:
        console = Console(file, file)
        # Told to stop while the trial's workers start: they save after their first step.
        with (
            pytest.MonkeyPatch.context() as patch,
            sent(signal.SIGTERM, lambda: os.getpid() if (trial / TRIAL_FILE).is_file() else None),
            pytest.raises(Terminated) as stopped,
        ):
            patch.setattr(stopping, "STOP_SECONDS", 500.0)  # the machine may be slow
            tune(two, console)
        at_stop = SimpleNamespace(
            text=stopped.value.done, checkpoints=list_names(trial / "checkpoints"),
            statuses=[run.info.status for run in runs_of(two)], reports=reports(two),
        )  # fmt: skip
        hurt = config("study.num_trials=2", "cluster.max_failures=1")
        with sent(signal.SIGKILL, lambda: lock_holder(trial)) as workers:
            first = tune(hurt, console)
        report(first, console)
        first_reports = reports(two)
        three = config("study.num_trials=3")
        result = tune(three, console)
        file.seek(0)
        told = file.read()
        again = tune(three, console)
    return SimpleNamespace(
        parent=parent, config=config, at_stop=at_stop, workers=workers, first=first, result=result,
        again=again, told=told, first_reports=first_reports, runs=runs_of(three),
        runs_by_trial=runs_by_trial(three), reports=reports(three),
    )  # fmt: skip


def test_a_study_ranks_its_trials_and_logs_each_as_a_child(done: SimpleNamespace) -> None:
    result = done.result
    rates = [trial["params"]["training.learning_rate"] for trial in result["trials"]]
    assert rates == [3e-3, 1e-6]
    best, worst = result["trials"]
    assert (best["id"], best["draw"], best["seed"]) == ("00000", 0, 20)
    assert best["accuracy"] > worst["accuracy"]
    assert result["best"] == best
    for trial in result["trials"]:
        # The accuracy that ranks is the validation accuracy of the checkpoint that is kept.
        state = read_checkpoint(Path(trial["checkpoint"])).state
        assert trial["accuracy"] == state.metrics["val_accuracy"] == state.score
        assert trial["forward_flops"] > 1e6
    with Image.open(result["plot"]) as plot:
        assert plot.format == "PNG"
    page = Path(result["page"]).read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "Learning curves" in page

    client = MlflowClient(done.config().tracking_uri)
    runs = {run.info.run_id: run for run in done.runs if run.info.status == "FINISHED"}
    parent = runs.pop(result["run_id"])
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {result["run_id"]}
    assert set(runs) == {trial["run_id"] for trial in result["trials"]}
    assert parent.data.tags["perceiver.best_trial"] == best["run_id"]
    artifacts = {artifact.path for artifact in client.list_artifacts(result["run_id"])}
    assert {"accuracy_vs_flops.png", "study.html", "study.json"} <= artifacts
    assert client.get_metric_history(best["run_id"], "val_accuracy")
    for number, run in done.runs_by_trial.items():
        assert run.data.tags["mlflow.source.name"] == sys.argv[0]
        assert run.data.tags["mlflow.user"] == getpass.getuser()
        assert run.data.tags["perceiver.settings"] == str(number)


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
    assert sorted(run.info.status for run in done.runs) == ["FAILED", *["FINISHED"] * 3]


def test_a_study_that_is_told_to_stop_saves_its_trials_and_goes_on(done: SimpleNamespace) -> None:
    stopped = "trial 0: stopped after step 1, with a checkpoint"
    assert done.at_stop.text == f"{stopped}; {GOES_ON}"
    assert done.at_stop.checkpoints == ["step-00000001"]
    assert done.at_stop.statuses == ["KILLED", "KILLED"]
    assert done.at_stop.reports == []
    assert "resuming the study" in done.told
    assert "trial 2/2" in done.told
    (stop,) = [each for each in done.first_reports if each.stop]
    assert stop.trial == 1 and stop.epoch < 3
    # Epochs that a stopped trial does not do are not to be done.
    assert f"{3 + stop.epoch}/{3 + stop.epoch}" in done.told
    told = "".join(done.told.split())  # a cell may be wrapped
    assert "whathappened" in told and "resumedfromitsstart" in told
    assert "(stopped)" in told
    best, worst = done.first["trials"]
    resumed, lost = best["notes"]
    assert resumed == "resumed from its start" and worst["notes"] == []
    assert "starting again from the last checkpoint (1 of cluster.max_failures=1)" in lost
    assert len(set(done.workers)) == 2
    assert (best["stopped_early"], worst["stopped_early"]) == (False, True)
    assert done.runs_by_trial[1].info.status == "FINISHED"
    assert done.runs_by_trial[1].data.tags["perceiver.stopped_at_epoch"] == str(stop.epoch)
    assert len(done.runs_by_trial) == len(done.runs) - 1 == 3, "no trial has two runs"


def test_a_study_that_is_done_goes_on_with_more_trials(
    done: SimpleNamespace, console: Console
) -> None:
    assert done.result["run_id"] == done.first["run_id"]
    assert done.result["trials"] == done.first["trials"]
    assert [(r.trial, r.epoch) for r in done.first_reports][:4] == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert done.reports == done.first_reports, "the third trial failed before its first report"
    with pytest.raises(UserError, match=r"num_trials=3, and study\.num_trials is 2: .* more"):
        tune(done.config("study.num_trials=2"), console)
    with pytest.raises(UserError, match=r"study\.grace_epochs was 1, is 2"):
        tune(done.config("study.num_trials=4", "study.grace_epochs=2"), console)


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


def lock_holder(trial: Path) -> int | None:
    """The process of the worker that writes to the folder of a trial, if there is one."""
    try:
        found = int(json.loads((trial / ".writer.lock").read_text())["pid"])
    except (OSError, ValueError):
        return None
    return found if Path(f"/proc/{found}").exists() else None


@contextlib.contextmanager
def sent(number: signal.Signals, process: Callable[[], int | None]) -> Iterator[list[int]]:
    """Send a signal once, as soon as there is a process to send it to.

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
                    os.kill(found, number)

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
