"""A study's decisions are those of replaying every report in time order, whatever killed it."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from pipeline.config.scheduler import Pace
from pipeline.config.schedulers import SCHEDULERS
from pipeline.config.study import StudyConfig
from pipeline.errors import UserError
from pipeline.tuning.decisions import Decisions
from pipeline.tuning.journal import Failure, Report, StudyJournal
from pipeline.tuning.journal_lines import JOURNAL_FILE

EPOCHS = 9
Decided = list[tuple[int, int, bool]]


class Trials:
    """Trials with given scores, which keep what a checkpoint keeps: the scores so far."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = scores
        self.reached = [0] * len(scores)
        self.stopped: set[int] = set()

    def can_report(self, trial: int) -> bool:
        return trial not in self.stopped and self.reached[trial] < EPOCHS


def start(folder: Path, reduction_factor: int) -> Decisions:
    study = StudyConfig.model_validate(
        {"space": {"a": {"choice": (1, 2)}}, "reduction_factor": reduction_factor}
    )
    return Decisions(StudyJournal(folder), SCHEDULERS["asha"](study, Pace(EPOCHS, 1, EPOCHS)))


def uninterrupted(scores: list[list[float]], order: list[int], factor: int) -> Decided:
    """The decisions of Ray's own scheduler, never stopped, on the same reports."""

    class Trial:
        def __init__(self, trial_id: str) -> None:
            self.trial_id = trial_id

    asha = ASHAScheduler(time_attr="epoch", metric="score", mode="max", max_t=EPOCHS + 1,
                         grace_period=1, reduction_factor=factor)  # fmt: skip
    named = [Trial(str(number)) for number in range(len(scores))]
    for trial in named:
        asha.on_trial_add(None, trial)
    trials, decisions = Trials(scores), []
    for number in order:
        if not trials.can_report(number):
            continue
        trials.reached[number] += 1
        epoch = trials.reached[number]
        result = {"epoch": epoch, "score": scores[number][epoch - 1]}
        # ASHA asks the controller for nothing.
        decision = asha.on_trial_result(None, named[number], result)
        if decision == TrialScheduler.STOP:
            trials.stopped.add(number)
        decisions.append((number, epoch, decision == TrialScheduler.STOP))
    return decisions


KILLS = ("none", "before the report", "amid the report", "after the report", "an epoch lost")


def interrupted(
    scores: list[list[float]], order: list[int], factor: int, kills: list[str], folder: Path
) -> Decided:
    """The same study, killed at the report `number` as `kills[number]` says, and resumed."""
    trials, halving = Trials(scores), start(folder, factor)
    for number, trial in enumerate(order):
        if not trials.can_report(trial):
            continue
        kill = kills[number]
        epoch = trials.reached[trial] + 1
        score = scores[trial][epoch - 1]
        if kill == "before the report":
            halving = start(folder, factor)
        if kill == "amid the report":
            whole = json.dumps({"trial": trial, "epoch": epoch, "score": score, "stop": False})
            with (folder / JOURNAL_FILE).open("a") as file:
                file.write(whole[: 1 + number % len(whole)])
            halving = start(folder, factor)
        stop = halving.report(trial, epoch, score)
        if kill in ("after the report", "an epoch lost"):
            # The decision was never acted on: the trial is stopped by what the journal says.
            halving = start(folder, factor)
            journal = StudyJournal(folder)
            assert journal.is_stopped(trial) == stop
            assert journal.epochs(trial) == epoch
        if kill == "an epoch lost" and not stop:
            # Its checkpoint was torn: it does two epochs again and repeats their reports.
            for again in range(max(1, epoch - 1), epoch + 1):
                assert not halving.report(trial, again, scores[trial][again - 1])
        trials.reached[trial] = epoch
        if stop:
            trials.stopped.add(trial)
    return [(r.trial, r.epoch, r.stop) for r in StudyJournal(folder).reports]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_trials=st.integers(1, 7), factor=st.integers(2, 4))
def test_killed_at_any_report_a_study_decides_as_one_that_never_was(
    data: st.DataObject, num_trials: int, factor: int
) -> None:
    one_score = st.floats(0, 1, allow_nan=False)
    score_table = st.lists(one_score, min_size=EPOCHS, max_size=EPOCHS)
    scores = data.draw(st.lists(score_table, min_size=num_trials, max_size=num_trials))
    order = data.draw(st.permutations([*range(num_trials)] * EPOCHS))
    kills = data.draw(st.lists(st.sampled_from(KILLS), min_size=len(order), max_size=len(order)))
    with tempfile.TemporaryDirectory() as folder:
        found = interrupted(scores, order, factor, kills, Path(folder))
    assert found == uninterrupted(scores, order, factor)


@pytest.mark.parametrize("kill", KILLS)
def test_killed_at_every_report_in_turn(kill: str, tmp_path: Path) -> None:
    scores = [[(7 * trial + epoch) % 11 / 11 for epoch in range(EPOCHS)] for trial in range(5)]
    order = [*range(5)] * EPOCHS
    expected = uninterrupted(scores, order, 2)
    assert any(stop for _, _, stop in expected), "nothing is stopped; the test shows nothing"
    for number in range(len(order)):
        kills = ["none"] * len(order)
        kills[number] = kill
        folder = tmp_path / str(number)
        folder.mkdir()
        assert interrupted(scores, order, 2, kills, folder) == expected


def test_a_resumed_study_does_not_stop_the_better_of_its_trials(tmp_path: Path) -> None:
    halving = start(tmp_path, 2)
    for trial, score in enumerate((0.21, 0.30, 0.25, 0.28)):
        halving.report(trial, 1, score)
    resumed = start(tmp_path, 2)
    assert not resumed.report(4, 1, 0.448)
    assert not resumed.report(5, 1, 0.40)
    assert resumed.report(6, 1, 0.22)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_stops_its_trial_and_no_other(
    score: float, tmp_path: Path
) -> None:
    halving = start(tmp_path, 2)
    assert halving.report(0, 1, score)
    assert not halving.report(1, 1, 0.1)
    assert halving.report(2, 1, 0.05)
    assert [report.score for report in StudyJournal(tmp_path).reports] == [None, 0.1, 0.05]
    assert start(tmp_path, 2).report(0, 2, 0.9), "it is stopped for good"


def test_a_torn_last_line_is_cut_off_and_the_next_report_stands_whole(tmp_path: Path) -> None:
    journal = StudyJournal(tmp_path)
    journal.append(Report(0, 1, 0.5, False))
    path = tmp_path / JOURNAL_FILE
    for torn in (b"\x00" * 40, b'{"trial": 1, "epo', b'{"trial": 1}\n', b"[]\n", b"\xff\n"):
        with path.open("ab") as file:
            file.write(torn)
        journal = StudyJournal(tmp_path)
        assert len(path.read_bytes().splitlines()) == len(journal.reports)
        journal.append(Report(1, journal.epochs(1) + 1, 0.5, False))
    assert [report.trial for report in StudyJournal(tmp_path).reports] == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "line",
    [
        '{"trial": -1, "epoch": 1, "score": 0.5, "stop": false}',
        '{"trial": 0, "epoch": 0, "score": 0.5, "stop": false}',
        '{"trial": 0, "epoch": true, "score": 0.5, "stop": false}',
        '{"trial": 0, "epoch": 1, "score": NaN, "stop": false}',
        '{"trial": 0, "epoch": 1, "score": "0.5", "stop": false}',
        '{"trial": 0, "epoch": 1, "score": 0.5, "stop": "no"}',
        '{"trial": 0, "epoch": 1, "score": 0.5}',
        '{"trial": 0, "error": 7}',
        "no JSON",
    ],
)
def test_a_damaged_line_amid_the_journal_is_named(line: str, tmp_path: Path) -> None:
    good = '{"trial": 0, "epoch": 1, "score": 0.5, "stop": false}\n'
    (tmp_path / JOURNAL_FILE).write_text(good + line + "\n" + good)
    with pytest.raises(UserError, match=r"reports\.jsonl: line 2 is damaged .*--fresh"):
        StudyJournal(tmp_path)


def test_errors_of_trials_are_kept(tmp_path: Path) -> None:
    StudyJournal(tmp_path).append(Failure(3, "the batch is too large: 512 > 255 — Größe"))
    assert StudyJournal(tmp_path).errors == {3: "the batch is too large: 512 > 255 — Größe"}
