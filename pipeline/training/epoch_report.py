"""What is kept of an evaluation beside its metrics: confusions, and the best one's details."""

import json
from typing import Any

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.records import write_json
from pipeline.runs.run_logger import RunLogger
from pipeline.runs.storage import read_bytes
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.reports.details import Details
from pipeline.training.reports.pictures import confusion_picture
from shards.errors import ShardError

_MAX_BYTES = 1 << 30
BEST_FILE = "best_evaluation.json"
CONFUSIONS = "confusion_matrix"


def report_evaluation(
    folder: Folder, logger: RunLogger, details: Details | None, state: TrainState
) -> str | None:
    """Log the confusions of an evaluation, and keep its details if no earlier one was better.

    Args:
        folder: The folder of the training.
        logger: The logger of the run.
        details: What the evaluation reports by class, label or number; None on all ranks but 0.
        state: The state after the evaluation.

    Returns:
        A line for the person if the details cannot be written, as on a full disk; else None.
    """
    if details is None:
        return None
    found = details.result()
    if picture := confusion_picture(found["confusion_matrix"]):
        logger.image(CONFUSIONS, picture, state.step)
    if state.score == max(state.scores):  # of equal ones, the latest is the best checkpoint
        try:
            write_json(folder / BEST_FILE, {"step": state.step, **found})
        except (OSError, ShardError, UserError) as error:
            reason = str(error).partition(";")[0]
            return f"{reason}; unless a later evaluation is better, the report has no classes"
    return None


def best_details(folder: Folder, step: int) -> dict[str, Any]:
    """Return the details of the best checkpoint's evaluation; nothing if there are none.

    Args:
        folder: The folder of the training.
        step: The step of the best checkpoint.
    """
    try:
        found: dict[str, Any] = json.loads(read_bytes(folder / BEST_FILE, _MAX_BYTES))
    except (OSError, ValueError):  # there is no validation split, or an older version trained
        return {}
    if found.pop("step", None) != step:
        return {}
    # The file has its keys in order of the alphabet.
    classes = [{"name": each["name"], **each} for each in found["classes"] or []]
    return {**found, "classes": classes or None}
