"""What may change when the same study is run again, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.study import StudyConfig
from pipeline.errors import UserError
from pipeline.runs.records import RunRecord
from pipeline.tuning.growth import has_more_trials, study_fields
from pipeline.tuning.journal_lines import JOURNAL_FILE

RATE = {"training.learning_rate": {"loguniform": (1e-4, 1e-2)}}


def section(**fields: Any) -> StudyConfig:
    return StudyConfig.model_validate({"space": RATE, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / JOURNAL_FILE).touch()
    return tmp_path


def grows(then: StudyConfig | dict[str, Any], now: StudyConfig, folder: Path) -> bool:
    fields = then if isinstance(then, dict) else study_fields(then)
    record = RunRecord("tune", fields, {}, 0.0, done=True)
    return has_more_trials(record, study_fields(now), now, folder, {})


@pytest.mark.parametrize("search", ["random", "sobol", "tpe"])
def test_a_study_goes_on_with_more_settings_and_never_with_fewer(search: str, folder: Path) -> None:
    few = section(search=search, num_trials=9)
    assert grows(few, section(search=search, num_trials=12), folder)
    assert not grows(few, few, folder)
    with pytest.raises(UserError, match=r"study\.num_trials=9, and study\.num_trials is 8: .* not"):
        grows(few, section(search=search, num_trials=8), folder)
    assert grows(few, section(search=search), folder) if search == "tpe" else True


def test_a_study_confirms_when_asked_and_stays_confirmed(folder: Path) -> None:
    assert grows(section(), section(confirm=2), folder)
    assert not grows(section(confirm=2), section(), folder)
    assert not grows(section(confirm=2), section(confirm=2), folder)
    assert grows(section(confirm=2), section(confirm=3), folder)


def test_other_settings_of_a_study_are_refused(folder: Path) -> None:
    for field, value in {
        "seeds": 2,
        "scheduler": "none",
        "search": "tpe",
        "confidence": 0.9,
    }.items():
        with pytest.raises(UserError, match=rf"study\.{field} was .*another name"):
            grows(section(), section(**{field: value}), folder)
    assert not grows(section(), section(num_workers=2, max_concurrent_trials=3), folder)


def test_no_trial_joins_a_population_later(folder: Path) -> None:
    with pytest.raises(UserError, match="'pbt' train together, so none can join"):
        grows(section(scheduler="pbt"), section(scheduler="pbt", num_trials=9), folder)


def test_a_record_of_an_earlier_version_is_the_same_study(folder: Path) -> None:
    then = {
        "study.space": {
            "training.learning_rate": {
                "choice": None, "uniform": None, "loguniform": [1e-4, 1e-2],
            },
        },
        "study.search": "random", "study.num_trials": 8, "study.epochs": None,
        "study.num_workers": 1, "study.max_concurrent_trials": None, "study.grace_epochs": 1,
        "study.reduction_factor": 2,
    }  # fmt: skip
    assert not grows(then, section(num_trials=8), folder)
    assert grows(then, section(num_trials=9), folder)
    with pytest.raises(UserError, match=r"study\.scheduler was 'asha', is 'none'"):
        grows(then, section(num_trials=8, scheduler="none"), folder)


def test_a_study_without_a_journal_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without reports\.jsonl, so it cannot go on"):
        grows(section(), section(num_trials=9), tmp_path)
