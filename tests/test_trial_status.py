"""A trial's MLflow run has the status with which the trial ended, at once."""

import io
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from cluster.interrupts import Terminated
from cluster.notices import Notice
from pipeline.config.tree import Config
from pipeline.config.trial_configs import draw_settings
from pipeline.runs.console import Console
from pipeline.runs.records import write_json
from pipeline.runs.tracking import begin_run
from pipeline.tuning import stopping
from pipeline.tuning.journal import Begin, Report, StudyJournal
from pipeline.tuning.stopping import GOES_ON, StudyStop
from pipeline.tuning.study import Study
from pipeline.tuning.study_bar import StudyBar
from pipeline.tuning.study_run import NUMBER, _callback
from pipeline.tuning.trials import STOPPED_TAG, TRIAL_FILE, close_trials, trial_folder
from shards import ShardSet

STUDY = "study={num_trials: 5, space: {training.learning_rate: {choice: [3e-3, 1e-6]}}}"


@pytest.fixture
def study(make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path) -> Study:
    """Five trials of 3 epochs, each with a run: 0 is done, 1 was stopped, 2 is under way."""
    config = make_config(tmp_path, STUDY, f"shards={digit_shards}", "training.epochs=3")
    assert config.study is not None
    shard_set = ShardSet.open(digit_shards)
    parent = begin_run(config, kind="study", shard_set=shard_set)
    for number in range(5):
        run = begin_run(config, kind="trial", shard_set=shard_set, parent_run_id=parent.run_id)
        folder = trial_folder(tmp_path, number)
        folder.mkdir(parents=True)
        write_json(folder / TRIAL_FILE, {"params": {}, "run_id": run.run_id})
        write_json(folder / "run.json", run.run_id)
    journal = StudyJournal(tmp_path)
    for number, settings in enumerate(draw_settings(config.study, 0)):
        journal.append(Begin(number, number, 0, settings))
    for epoch in (1, 2, 3):
        journal.append(Report(0, epoch, 0.5, False))
    journal.append(Report(1, 1, 0.1, True))
    journal.append(Report(2, 1, 0.5, False))
    return Study(config, config.study, tmp_path, parent, journal)


def found(study: Study) -> list[tuple[str, str | None]]:
    """Every trial's status, and the epoch after which it was stopped."""
    client, runs = MlflowClient(study.run.tracking_uri), []
    for number in range(5):
        run_id = (trial_folder(study.folder, number) / "run.json").read_text().strip('"\n')
        run: Any = client.get_run(run_id)
        runs.append((run.info.status, run.data.tags.get(STOPPED_TAG)))
    return runs


def test_the_runs_of_a_killed_study_are_closed_as_its_trials_ended(study: Study) -> None:
    MlflowClient(study.run.tracking_uri).set_terminated(
        (trial_folder(study.folder, 4) / "run.json").read_text().strip('"\n')
    )
    ended = {0: True, 1: True, 3: False}
    for _ in range(2):
        close_trials(study.folder, study.run, study.journal, study.epochs, ended)
        assert found(study) == [
            ("FINISHED", None),
            ("FINISHED", "1"),
            ("KILLED", None),  # cut off with the study
            ("FAILED", None),
            ("FINISHED", None),
        ]


def test_a_trial_s_run_has_its_status_while_the_study_goes_on(study: Study) -> None:
    file, queue = io.StringIO(), SimpleNamespace(ended=lambda number: None)
    with StudyBar(study, Console(file, file)) as bar:
        stop = StudyStop(bar.notice)
        callback = _callback(study, bar, stop, queue)
        for number in range(5):
            callback.on_trial_start(1, [], SimpleNamespace(config={NUMBER: number}))
        callback.on_trial_complete(1, [], SimpleNamespace(config={NUMBER: 1}))
        callback.on_trial_error(2, [], SimpleNamespace(config={NUMBER: 3}))
        told, unfit = SimpleNamespace(config={NUMBER: 2}), SimpleNamespace(config={NUMBER: 4})
        callback.on_trial_result(3, [], told, {"stopped": "stopped after step 9"})
        callback.on_trial_result(3, [], unfit, {"failed": "the loss is not finite"})
        callback.on_trial_complete(4, [], told)
        callback.on_trial_complete(4, [], unfit)
        assert found(study) == [
            ("RUNNING", None),
            ("FINISHED", "1"),
            ("KILLED", None),  # a notice has stopped it, and the same command goes on with it
            ("FAILED", None),
            ("FAILED", None),
        ]
    errors = StudyJournal(study.folder).errors
    assert {*errors} == {3, 4} and errors[4] == "the loss is not finite"
    assert (stop.running, stop.stopped) == ({0}, {2: "stopped after step 9"})
    with pytest.raises(Terminated) as ended:
        stop.end(lambda number: number == 2)
    assert ended.value.done == f"trial 2: stopped after step 9; {GOES_ON}"


def test_a_study_is_over_when_those_that_ran_at_the_signal_have_ended(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    stop = StudyStop(lines.append)
    stop.running |= {0, 1}
    assert not stop.is_over()
    sent: list[tuple[str, Notice]] = []
    monkeypatch.setattr(stopping, "tell_workers", lambda *told: sent.append(told))
    stop._tell(signal.SIGTERM)
    assert sent == [(stop.token, Notice.COMMAND)]
    assert lines[0].startswith("SIGTERM: each running trial saves a checkpoint")
    assert not stop.is_over()
    stop.running -= {0}
    stop.running |= {2}  # it started later, and is not waited for
    assert not stop.is_over()
    stop.running -= {1}
    assert stop.is_over()
    monkeypatch.setattr(stopping, "STOP_SECONDS", 0.0)
    hung = StudyStop(lines.append)
    hung.running |= {0}
    hung._tell(signal.SIGHUP)
    hung.is_over()
    assert hung.is_over(), "a trial that hangs is not waited for without an end"
