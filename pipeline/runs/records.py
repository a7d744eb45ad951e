"""Records of what each verb did last, to skip finished work and to notice changed settings."""

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from pipeline.config.base import differences
from pipeline.config.folders import Folder, folder_at
from pipeline.errors import UserError
from pipeline.runs.storage import make_folder, read_bytes, write_bytes
from pipeline.runs.strict_json import to_json
from shards.redaction import redacted_tree

_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class RunRecord:
    """The last work of one verb in a run folder, finished or only begun.

    Attributes:
        name: The verb.
        fingerprint: Everything that determines the result, by dotted field.
        result: What the verb returned, or what it needs to continue.
        seconds: The duration of its last run.
        done: Whether it finished.
    """

    name: str
    fingerprint: dict[str, Any]
    result: dict[str, Any]
    seconds: float = 0.0
    done: bool = False

    def refuse_changes(
        self,
        fingerprint: dict[str, Any],
        what: str,
        allowed: Collection[str] = (),
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> str | None:
        """Refuse to continue, or to accept as done, work that was made with other settings.

        Args:
            fingerprint: The fingerprint of the work that is wanted now.
            what: The name of the old work, for the error.
            allowed: The fields that may differ.
            defaults: The default values of fields. A field that an older record lacks had its
                default.

        Returns:
            The allowed fields that differ, in words; None if none differs.

        Raises:
            UserError: Other fields differ; the text names them.
        """
        then, now = self.fingerprint, fingerprint
        older = {field: defaults[field] for field in defaults.keys() & now.keys() - then.keys()}
        if changed := differences(_without({**older, **then}, allowed), _without(now, allowed)):
            raise UserError(
                f"{what} was made with other settings: {changed}. Give this one another name "
                "(name=…), or replace the old one with --fresh"
            )
        # An older record may lack an allowed field.
        known = [field for field in allowed if field in then and field in now]
        return differences({f: then[f] for f in known}, {f: now[f] for f in known})


def recorded_folder(record: RunRecord, folder: Folder, *keys: str) -> Folder:
    """Return the folder that a record's result names. It must lie in the run's own folder.

    Args:
        record: The record of a verb that is done.
        folder: The folder of the run.
        keys: The keys that lead to the folder in the result.

    Raises:
        UserError: The result names no folder, or one outside the run's folder.
    """
    value: Any = record.result
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str) or not _lies_in(value, folder):
        raise UserError(
            f"{_path(folder, record.name)}: its {'.'.join(keys)} is not a folder in {folder}; "
            "delete it, or run again with --fresh"
        )
    return folder_at(value)


def _lies_in(address: str, folder: Folder) -> bool:
    try:
        return folder.resolve() in folder_at(address).resolve().parents
    except (
        OSError,
        UserError,
        ValueError,
        RuntimeError,
    ):  # no path, an unknown URL, a loop of links
        return False


def has_grown(what: str, field: str, before: float, now: float) -> bool:
    """Return whether old work is to continue with more of something than before.

    Args:
        what: The name of the old work, for the error.
        field: The field of the configuration.
        before: The value that the old work was made with; infinity for no bound.
        now: The value that is wanted now.

    Raises:
        UserError: `now` is less than `before`.
    """
    if now < before:
        raise UserError(
            f"{what} was made with {field}={before}, and {field} is {now}: it can continue with "
            "more, not with less. Give this one another name (name=…), or replace the old one "
            "with --fresh"
        )
    return now > before


def read_run_record(folder: Folder, name: str) -> RunRecord | None:
    """Return the record of verb `name` in a run folder, or None if there is none.

    Raises:
        UserError: The record is damaged.
    """
    path = _path(folder, name)
    try:
        record = RunRecord(**json.loads(read_bytes(path, _MAX_BYTES)))
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
    """Return what is wrong with a record that no verb can have written, or None."""
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


def write_run_record(folder: Folder, record: RunRecord) -> None:
    """Write a record atomically."""
    path = _path(folder, record.name)
    make_folder(path.parent)
    write_json(path, asdict(record))


def write_json(path: Folder, value: Any) -> None:
    """Write a JSON file completely or not at all.

    Numbers that are not finite become null, and addresses lose their secrets.

    Raises:
        ShardError, UserError: The file cannot be written.
    """
    replace_text(path, to_json(redacted_tree(value), indent=2, sort_keys=True) + "\n")


def replace_text(path: Folder, text: str) -> None:
    """Write a text file completely or not at all.

    Raises:
        ShardError, UserError: The file cannot be written.
    """
    write_bytes(path, text.encode())


def _without(tree: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    return {field: value for field, value in tree.items() if field not in fields}


def _path(folder: Folder, name: str) -> Folder:
    return folder / "stages" / f"{name}.json"
