"""What may change between two commands of the same study, and whether it is to have more trials."""

import math
from typing import Any

from pipeline.config.base import ConfigBase
from pipeline.config.folders import Folder
from pipeline.config.study import StudyConfig
from pipeline.errors import UserError
from pipeline.runs.records import RunRecord, has_grown
from pipeline.training.fingerprint import SAME_TO_ROUNDING
from pipeline.tuning.journal_lines import JOURNAL_FILE, has_journal

WITHOUT_EFFECT = frozenset({"study.num_workers", "study.max_concurrent_trials"})
"""Fields that decide only where trials run, and how many at the same time."""
GROWS = frozenset({"study.num_trials", "study.confirm", "study.budget"})
"""Fields of which a finished study may continue with more."""
_FIRST_KINDS = ("choice", "uniform", "loguniform")


def study_fields(study: StudyConfig) -> dict[str, Any]:
    """Return the section by dotted field, in the types of JSON.

    Kinds of values that a searched field does not have are left out, but not those of the first
    versions, so that their records compare equal.
    """
    fields = study.model_dump(mode="json")
    fields["space"] = {
        path: {key: each for key, each in values.items() if each or key in _FIRST_KINDS}
        for path, values in fields["space"].items()
    }
    return {f"study.{key}": value for key, value in fields.items()}


def has_more_trials(
    record: RunRecord,
    fingerprint: dict[str, Any],
    study: StudyConfig,
    folder: Folder,
    defaults: dict[str, Any],
) -> bool:
    """Return whether the study now asks for more trials than before.

    Raises:
        UserError: The study has other settings or fewer trials, or has no journal to continue from.
    """
    record.refuse_changes(
        fingerprint,
        str(folder),
        {*SAME_TO_ROUNDING, *WITHOUT_EFFECT, *GROWS},
        defaults | _study_defaults(),
    )
    before = StudyConfig.model_validate(
        study.model_dump()
        | {"num_trials": record.fingerprint.get("study.num_trials")}
        | {"confirm": record.fingerprint.get("study.confirm", 0)}
    )
    # Settings that were confirmed stay so if fewer trainings are asked for.
    grown = study.confirm > before.confirm
    grown |= has_grown(str(folder), "study.num_trials", before.trials, study.trials)
    grown |= _budget_has_grown(folder, record.fingerprint.get("study.budget") or {}, study)
    if grown and study.scheduler == "pbt":
        raise UserError(
            f"{folder} was made with study.num_trials={before.trials}: the trials of scheduler "
            "'pbt' train together, so none can join them later. Give this study another name "
            "(name=…), or replace it with --fresh"
        )
    if not has_journal(folder) and (grown or not record.done):
        raise UserError(
            f"{folder}: an earlier version made this study without {JOURNAL_FILE}, so it cannot go "
            "on; run it again with --fresh"
        )
    return grown


def _budget_has_grown(folder: Folder, before: dict[str, Any], study: StudyConfig) -> bool:
    """Return whether a bound of the budget is higher than before, or gone.

    Raises:
        UserError: A bound is lower than before.
    """
    grown = False
    for name, now in study.budget.model_dump().items():
        then = before.get(name)
        ends = [math.inf if each is None else each for each in (then, now)]
        grown |= has_grown(str(folder), f"study.budget.{name}", *ends)
    return grown


def _study_defaults() -> dict[str, Any]:
    """Return the default values of `study`. An older record lacks the fields that came later."""
    fields = StudyConfig.model_fields.items()
    return {
        f"study.{name}": _as_json(field.default)
        for name, field in fields
        if not field.is_required()
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, ConfigBase):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value
