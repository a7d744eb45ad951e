"""What each verb did last, so that work done and proven is skipped and a change is noticed."""

import json
import os
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config.base import differences
from pipeline.errors import UserError
from pipeline.runs.strict_json import to_json
from shards.files import AtomicFile
from shards.redaction import redacted_tree
from shards.set_files import read_file

_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class RunRecord:
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

    def refuse_changes(
        self, fingerprint: dict[str, Any], what: str, allowed: Collection[str] = ()
    ) -> str | None:
        """Refuse to go on with, or pass off as done, what other settings made.

        Args:
            fingerprint: of what is wanted now.
            what: names the old work in the error.
            allowed: fields that may differ.

        Returns:
            The allowed fields that differ, in words; None where none does.

        Raises:
            UserError: names the fields that differ.
        """
        then, now = self.fingerprint, fingerprint
        if changed := differences(_without(then, allowed), _without(now, allowed)):
            raise UserError(
                f"{what} was made with other settings: {changed}. Give this one another name "
                "(name=…), or replace the old one with --fresh"
            )
        # An older record may lack such a field.
        known = [field for field in allowed if field in then and field in now]
        return differences({f: then[f] for f in known}, {f: now[f] for f in known})


def recorded_folder(record: RunRecord, folder: Path, *keys: str) -> Path:
    """The folder that a record's result names, which lies in the run's own.

    Args:
        record: of a verb that is done.
        folder: of the run.
        keys: lead to it in the result.

    Raises:
        UserError: it is not there, or names a place outside the run's folder.
    """
    value: Any = record.result
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    own = os.path.realpath(folder)
    try:
        if not os.path.realpath(value).startswith(f"{own}{os.sep}"):
            raise ValueError
    except (ValueError, TypeError):
        raise UserError(
            f"{_path(folder, record.name)}: its {'.'.join(keys)} is no folder in {folder}; delete "
            "it, or run again with --fresh"
        ) from None
    return Path(value)


def has_grown(what: str, field: str, before: int, now: int) -> bool:
    """Whether old work is wanted with more of something than it was made with.

    Raises:
        UserError: it is wanted with less.
    """
    if now < before:
        raise UserError(
            f"{what} was made with {field}={before}, and {field} is {now}: it can go on with more, "
            "not with less. Give this one another name (name=…), or replace the old one with "
            "--fresh"
        )
    return now > before


def read_run_record(folder: Path, name: str) -> RunRecord | None:
    """The record of verb `name` in a run folder, or None."""
    path = _path(folder, name)
    try:
        record = RunRecord(**json.loads(read_file(path.parent, path.name, _MAX_BYTES)))
        if fault := _fault(record, name):
            raise ValueError(fault)
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it, or run again with --fresh"
        ) from None


def _fault(record: Any, name: str) -> str | None:
    """What a record says that no verb can have written, or None."""
    if record.name != name:
        return "of another verb"
    if not isinstance(record.fingerprint, dict) or not isinstance(record.result, dict):
        return "fingerprint or result is no object"
    if not isinstance(record.done, bool):
        return "done is neither true nor false"
    seconds = record.seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return "seconds is no number"
    if not 0 <= seconds <= sys.float_info.max:
        return "seconds is no time"
    return None


def write_run_record(folder: Path, record: RunRecord) -> None:
    """Store a record, atomically."""
    path = _path(folder, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(record))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, which appears whole or not at all.

    Numbers that are not finite become null, and addresses lose their secrets.

    Raises:
        ShardError: the file system refuses.
    """
    replace_text(path, to_json(redacted_tree(value), indent=2, sort_keys=True) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file, which appears whole or not at all.

    Raises:
        ShardError: the file system refuses.
    """
    with AtomicFile(path) as file:
        file.write(text.encode())


def _without(tree: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    return {field: value for field, value in tree.items() if field not in fields}


def _path(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.json"
