"""What each verb did last, so that work done and proven is skipped and a change is noticed."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.section import differences


@dataclass(frozen=True)
class StageRecord:
    """One verb's last completed (or begun) work in a run folder.

    Attributes:
        name: the verb.
        fingerprint: dotted field → value of all that determines the result.
        result: what the verb returned, or has to find again when it goes on.
        seconds: what it took when it last ran.
        done: whether it finished.
    """

    name: str
    fingerprint: dict[str, Any]
    result: dict[str, Any]
    seconds: float = 0.0
    done: bool = False

    def refuse_changes(self, fingerprint: dict[str, Any], what: str) -> None:
        """Refuse to go on with, or pass off as done, what other settings made.

        Raises:
            UserError: names the fields that differ.
        """
        if changed := differences(self.fingerprint, fingerprint):
            raise UserError(
                f"{what} was made with other settings: {changed}. Give this one another name "
                "(name=…), or replace the old one with --fresh"
            )


def read_stage(folder: Path, name: str) -> StageRecord | None:
    """The record of verb ``name`` in a run folder, or None."""
    path = _path(folder, name)
    try:
        return StageRecord(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it, or run again with --fresh"
        ) from None


def write_stage(folder: Path, record: StageRecord) -> None:
    """Store a record, atomically."""
    path = _path(folder, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(record))


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
    temporary.replace(path)


def _path(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.json"
