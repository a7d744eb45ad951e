"""The table of a study's trials that a terminal shows while it runs."""

import math
from collections.abc import Set
from typing import Any

from pipeline.training.objectives import Objective
from pipeline.tuning.study import Study
from pipeline.tuning.trial_records import TrialRecord


def study_table(
    study: Study, objective: type[Objective], running: Set[int], max_rows: int
) -> tuple[str, list[str], list[list[Any]]]:
    """Return the trials that have begun: those that run first, then the others, the best first.

    Args:
        study: The study.
        objective: The objective of its trainings.
        running: The numbers of the trials that run now.
        max_rows: The most rows; the worst trials are left out, and the title counts them.

    Returns:
        The title, the columns and the rows, as `Console.table` takes them.
    """
    records = [study.records[number] for number in sorted(running)]
    others = (record for record in study.records.values() if record.number not in running)
    records += sorted(others, key=_worst_last)
    fields = list(dict.fromkeys(field for record in records for field in record.settings))
    names = [field.rpartition(".")[2] for field in fields]
    columns = ["trial", *names, "epoch", objective.selection, "best", "state"]
    rows = []
    for record in records[:max_rows]:
        last = record.scores.get(record.epochs)
        scores = ("" if s is None else objective.signed(s) for s in (last, record.best_score))
        epochs = f"{record.epochs}/{study.epochs(record.number)}"
        values = (record.settings.get(field, "") for field in fields)
        state = _state(study, record, record.number in running)
        rows.append([record.number, *values, epochs, *scores, state])
    left_out = len(records) - len(rows)
    return "trials" + (f"; {left_out} more" if left_out else ""), columns, rows


def _worst_last(record: TrialRecord) -> float:
    return math.inf if record.best_score is None else -record.best_score


def _state(study: Study, record: TrialRecord, is_running: bool) -> str:
    if is_running:
        return "running"
    if record.error is not None:
        return "failed"
    if study.is_cut(record):
        return "stopped"
    return "finished" if study.reached_end(record) else "waiting"
