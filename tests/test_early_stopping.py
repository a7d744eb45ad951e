"""`training.early_stopping`: a training ends when the objective's metric no longer improves."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.config.early_stopping import epochs_without_improvement
from pipeline.config.scheduler import Scheduler
from pipeline.config.space import SpaceConfig
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import read_run_record
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.loop import TrainLoop
from pipeline.training.train import train
from pipeline.tuning.decisions import Decisions
from pipeline.tuning.journal import Begin, StudyJournal
from pipeline.tuning.study import Study

MakeConfig = Callable[..., Config]


@pytest.mark.parametrize(
    ("scores", "min_delta", "epochs"),
    [
        ([], 0.0, 0),
        ([0.5], 0.0, 0),
        ([0.5, 0.5, 0.4], 0.0, 2),
        ([0.5, 0.4, 0.6], 0.0, 0),
        ([0.5, 0.55, 0.59, 0.61], 0.1, 0),  # small steps add up to an improvement
        ([0.5, 0.55, 0.6], 0.125, 2),
        ([-3.0, -2.0, -2.5], 0.0, 1),  # scores of a metric that is better when lower
    ],
)
def test_epochs_without_improvement_are_counted(
    scores: list[float], min_delta: float, epochs: int
) -> None:
    assert epochs_without_improvement(scores, min_delta) == epochs


def test_a_training_stops_and_a_resumed_one_stops_after_the_same_epoch(
    make_config: MakeConfig,
    digit_shards: Path,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def config(output: str, *overrides: str) -> Config:
        return make_config(
            tmp_path / output, f"shards={digit_shards}", "cluster.num_workers=0",
            "training.learning_rate=1e-12", "training.epochs=8",
            "training.early_stopping.patience=3", *overrides,
        )  # fmt: skip

    whole = train(config("whole"), console)
    assert (whole["epochs"], whole["stopped_early"]) == (4, 4)
    run = MlflowClient(config("whole").tracking_uri).get_run(whole["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["perceiver.stopped_at_epoch"] == "4"
    record = read_run_record(config("whole").folder, "train")
    assert record is not None and record.result["stopped_early"] == 4
    assert train(config("whole"), console)["skipped"]
    # More epochs do not change that it stopped.
    longer = train(config("whole", "training.epochs=9"), console)
    assert (longer["epochs"], longer["continued"]) == (4, [])

    run_epoch = TrainLoop.run_epoch

    def interrupted(loop: TrainLoop, state: TrainState) -> TrainState:
        if state.epoch == 2:
            raise UserError("interrupted")
        return run_epoch(loop, state)

    monkeypatch.setattr(TrainLoop, "run_epoch", interrupted)
    with pytest.raises(UserError, match="interrupted"):
        train(config("cut"), console)
    last = last_checkpoint(config("cut").folder / "train" / "checkpoints")
    assert last is not None and last.state.epoch == 2
    monkeypatch.setattr(TrainLoop, "run_epoch", run_epoch)
    assert train(config("cut"), console)["stopped_early"] == 4


class NeverStops(Scheduler):
    def stops(self, trial: int, epoch: int, samples: int, score: float) -> bool:
        return False


def test_a_trial_is_stopped_by_its_own_rule_and_the_journal_says_so(tmp_path: Path) -> None:
    asked: list[tuple[int, list[float]]] = []

    def stops_early(trial: int, scores: list[float]) -> bool:
        asked.append((trial, scores))
        return trial == 1 and epochs_without_improvement(scores, 0.0) >= 1

    for epoch in (1, 2):  # the study is resumed between the epochs
        decisions = Decisions(StudyJournal(tmp_path), NeverStops(), stops_early)
        assert [decisions.report(trial, epoch, 0.5) for trial in (0, 1)] == [False, epoch == 2]
    assert asked[-1] == (1, [0.5, 0.5])
    assert StudyJournal(tmp_path).is_stopped(1)
    assert Decisions(StudyJournal(tmp_path), NeverStops()).report(1, 3, 0.9)


def test_a_study_asks_the_rule_of_each_trial(make_config: MakeConfig, tmp_path: Path) -> None:
    base = make_config(tmp_path, "training.early_stopping.patience=1")
    assert base.training.early_stopping is not None
    settings = [{}, {"training.early_stopping.patience": 2}, {"training.early_stopping": None}]
    section = StudyConfig(space={"training.learning_rate": SpaceConfig(choice=(1e-3,))})
    run = RunRef(base.tracking_uri, "run", str(tmp_path))
    study = Study(base, section, tmp_path, run, StudyJournal(tmp_path))
    for number, each in enumerate(settings):
        study.journal.append(Begin(number, number, 0, each))
    stops = [study.stops_early(trial, [0.5, 0.5]) for trial in range(3)]
    assert stops == [True, False, False]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{patience: 0}", r"training\.early_stopping\.patience: is 0"),
        ("{patience: 2, min_delta: -1}", r"training\.early_stopping\.min_delta: is -1"),
        ("{min_delta: 1}", r"training\.early_stopping\.patience"),
    ],
)
def test_rules_without_a_meaning_are_refused(
    make_config: MakeConfig, tmp_path: Path, value: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config(tmp_path, f"training.early_stopping={value}")
