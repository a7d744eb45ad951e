"""The bar of a study: it goes on where the study stands, and a stopped trial's rest is no work."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.tree import Config
from pipeline.config.trial_configs import draw_settings
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.training.objectives import objective_class
from pipeline.tuning.journal import Begin, Failure, Report, StudyJournal
from pipeline.tuning.study import Study
from pipeline.tuning.study_bar import StudyBar
from pipeline.tuning.study_table import study_table

STUDY = "study={num_trials: 4, space: {training.learning_rate: {choice: [3e-3, 1e-6]}}}"


@pytest.fixture
def study(make_config: Callable[..., Config], tmp_path: Path) -> Study:
    """Four trials of 8 epochs, none begun."""
    config = make_config(tmp_path, STUDY, "training.epochs=8")
    assert config.study is not None
    run = RunRef("sqlite:///none.db", "none", str(tmp_path))
    return begun(Study(config, config.study, tmp_path, run, StudyJournal(tmp_path)), 4)


def begun(study: Study, trials: int) -> Study:
    """The study, of which as many trials have begun."""
    for number, settings in enumerate(draw_settings(study.section, 0)[:trials]):
        study.journal.append(Begin(number, number, 0, settings))
    return study


def report(study: Study, trial: int, epoch: int, *, stop: bool = False) -> None:
    study.journal.append(Report(trial, epoch, 0.5, stop))


def test_which_trials_have_ended_and_how(study: Study) -> None:
    for epoch in range(1, 9):
        report(study, 0, epoch)
    report(study, 1, 1, stop=True)
    report(study, 2, 1)
    assert study.open_trials() == [2, 3]
    assert study.ended() == {0: True, 1: True}
    study.journal.append(Failure(3, "no room", final=False))
    assert study.open_trials() == [2, 3], "it is tried again when the study is resumed"
    assert study.ended() == {0: True, 1: True, 3: False}
    study.journal.append(Failure(3, "no room"))
    assert study.open_trials() == [2]
    report(study, 3, 1)
    assert study.open_trials() == [2, 3], "it was tried again, and goes on"
    assert study.ended() == {0: True, 1: True}


def test_a_resumed_study_s_bar_goes_on(study: Study) -> None:
    for epoch in (1, 2, 3):
        report(study, 0, epoch)
    report(study, 1, 1, stop=True)
    file = io.StringIO()
    with StudyBar(study, Console(file, file)):
        pass
    # 3 and 1 are done, 5 and 16 are to be done.
    assert "4/25" in file.getvalue()
    assert "trial 1/4" in file.getvalue()
    assert "epochs/s" not in file.getvalue(), "nothing has been done here and now"


def test_what_a_trial_does_not_do_is_no_longer_to_be_done(study: Study) -> None:
    file = io.StringIO()
    with StudyBar(study, Console(file, file)) as bar:
        bar.epoch(0, 1, 0.5)
        bar.epoch(1, 1, 0.4)
        report(study, 1, 1, stop=True)
        bar.end(1)
        bar.epoch(0, 2, 0.6)
        bar.epoch(0, 1, 0.5)  # repeated
        bar.end(2)  # it failed before its first epoch
    text = file.getvalue()
    assert "3/17" in text
    assert "trial 2/4" in text
    assert "epoch 2/8, val_accuracy 0.6000" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_table_of_the_trials(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("COLUMNS", "120")
    for epoch in range(1, 9):
        report(study, 0, epoch)
    study.journal.append(Report(1, 1, 0.75, stop=True))
    study.journal.append(Failure(3, "no room", final=False))
    file = Terminal()
    with StudyBar(study, Console(file, file)) as bar:
        bar.begin(2)
        study.journal.append(Report(2, 1, 0.125, stop=False))
        bar.epoch(2, 1, 0.125)
        assert bar._bar is not None
        bar._bar._progress.refresh()  # as it does four times a second
        drawn = file.getvalue()
    shown = drawn.rpartition("trials")[2]
    rows = [re.findall(r"[\w./+-]+", row) for row in shown.splitlines() if "│" in row]
    assert [(row[0], row[-1]) for row in rows] == [
        ("2", "running"), ("1", "stopped"), ("0", "finished"), ("3", "failed"),
    ]  # fmt: skip
    assert rows[0][2:5] == ["1/8", "0.125", "0.125"]
    assert "10/" in shown, "the bar is below"
    assert "val_accuracy" not in drawn, "the table says it"
    assert "│" not in file.getvalue()[len(drawn) :], "the result has its own table"
    bar.leave(2)
    _, _, (first, *_) = study_table(study, objective_class("classify"), set(), 4)
    assert first[0] == 1, "the best is first"
    _, _, rows = study_table(study, objective_class("classify"), set(), 4)
    assert rows[2][-1] == "waiting"


def test_a_low_terminal_shows_the_best_trials_and_counts_the_others(study: Study) -> None:
    report(study, 1, 1)
    title, _, rows = study_table(study, objective_class("classify"), {3}, 2)
    assert [row[0] for row in rows] == [3, 1]
    assert title == "trials; 2 more"


def test_trials_of_a_study_that_searches_epochs_end_at_their_own(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    search = "study={search: grid, space: {training.epochs: {choice: [2, 8, 4]}}}"
    config = make_config(tmp_path, search, "training.epochs=3")
    assert config.study is not None
    run = RunRef("sqlite:///none.db", "none", str(tmp_path))
    study = begun(Study(config, config.study, tmp_path, run, StudyJournal(tmp_path)), 3)
    for epoch in (1, 2):
        report(study, 0, epoch)
        report(study, 1, epoch)
    assert study.open_trials() == [1, 2]
    assert study.most_epochs == 8
    file = io.StringIO()
    with StudyBar(study, Console(file, file)):
        pass
    assert "4/14" in file.getvalue()
