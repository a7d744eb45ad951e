"""Entries for MLflow are first written to disk, and delivered when MLflow answers.

Each process that logs to a run appends to its own file, `RUN.WRITER.jsonl`, with one entry per
line. `RUN.WRITER.sent` beside it holds the number of bytes that were delivered. So a slow or dead
server does not delay the training. The missing entries are delivered later and in order: by the
same process, by the driver at the end, or by the next command for the same run.

Every metric carries the time at which it was logged. MLflow stores one value of a metric for each
time and step. So an entry that is delivered twice, because a process was killed before it wrote
that down, is stored once.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.folders import Folder, folder_at, is_remote
from pipeline.errors import UserError
from pipeline.runs.mlflow_client import new_client
from pipeline.runs.mlflow_errors import reason_of
from pipeline.runs.outbox_objects import (
    ENTRIES,
    SENT,
    fetch,
    fetch_all,
    local_outbox,
    read_header,
    save,
)
from pipeline.runs.records import replace_text
from pipeline.runs.storage import exists, local_copy, remove_folder
from pipeline.runs.strict_json import finite_items
from shards.files import remove_tree
from shards.redaction import redacted

DRIVER = "driver"
IMAGES = "images"
"""The folder of a run's artifacts in which MLflow looks for pictures that have a step."""
# The largest numbers that MLflow accepts in one request.
MAX_METRICS, MAX_TAGS = 1000, 100
PAUSE_SECONDS = 30.0
_refused_at: dict[str, float] = {}


@dataclass(frozen=True)
class RunRef:
    """What a process needs to write to a run.

    Attributes:
        tracking_uri: The URI of MLflow.
        run_id: The ID of the run.
        outbox: The folder or URL of the entries to deliver, on storage that all workers share.
    """

    tracking_uri: str
    run_id: str
    outbox: str


class Outbox:
    """The entries of one process for one run.

    Args:
        run: The run.
        writer: The name of the process, unique in the run.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, run: RunRef, writer: str) -> None:
        self.run = run
        self.path = local_outbox(run.outbox) / f"{run.run_id}.{writer}{ENTRIES}"
        try:
            fetch(run.outbox, self.path.name)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            # A killed process may have left half a line.
            whole = self.path.read_bytes().rfind(b"\n") + 1
            self._file.truncate(whole)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add the finite ones of the metrics of one step, with the current time."""
        now = int(time.time() * 1000)
        self._put({"metrics": [[name, value, now, step] for name, value in finite_items(values)]})

    def tags(self, values: Mapping[str, str]) -> None:
        """Add tags of the run."""
        self._put({"tags": dict(values)})

    def artifact(self, path: Folder, to: str | None = None) -> None:
        """Add a file as an artifact. It is read when it is delivered, so it must stay.

        Args:
            path: The file.
            to: The folder of the run's artifacts that gets it; None for the uppermost.
        """
        self._put({"artifact": _address(path), **({"to": to} if to else {})})

    def image(self, name: str, step: int, paths: Iterable[Folder]) -> None:
        """Add the files of a picture of one step, with the names that MLflow gives to images."""
        for path in paths:
            self._put({"artifact": _address(path), "to": IMAGES, "at_step": [name, step]})

    def end(self, status: str) -> None:
        """Add the end of the run with its status: FINISHED, FAILED or KILLED."""
        self._put({"end": status, "time": int(time.time() * 1000)})

    def last_steps(self) -> dict[str, int]:
        """Return the last step of each metric, and of each `images/NAME`, that was ever added."""
        return _last_steps(self.path)

    def save(self) -> None:
        """Upload what is not delivered, if the run lies in object storage.

        If the storage does not answer, the next call uploads it.
        """
        with contextlib.suppress(UserError):
            _save(self.run.outbox, self.path)

    def close(self) -> None:
        """Close the file. Nothing may be added afterwards."""
        self._file.close()

    def _put(self, entry: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from None


def deliver(path: Path, mlflow_client: Any) -> None:
    """Deliver the entries of one file that MLflow does not have yet.

    Args:
        path: The path of the file.
        mlflow_client: An `MlflowClient`.

    Raises:
        Exception: The client failed. What was delivered before is written down.
    """
    from mlflow.entities import Metric, RunTag

    run_id = path.name.partition(".")[0]
    metrics: list[Any] = []
    tags: list[Any] = []
    position = done = _sent(path)

    def send() -> None:
        nonlocal done
        if metrics or tags:
            mlflow_client.log_batch(run_id, metrics=metrics, tags=tags)
            metrics.clear()
            tags.clear()
        if position > done:
            _note_sent(path, position)
            done = position

    for entry, end in _read_with_ends(path, done):
        new_metrics = [Metric(*values) for values in entry.get("metrics", ())]
        new_tags = [RunTag(*item) for item in entry.get("tags", {}).items()]
        if len(metrics) + len(new_metrics) > MAX_METRICS or len(tags) + len(new_tags) > MAX_TAGS:
            send()
        metrics += new_metrics
        tags += new_tags
        if "artifact" in entry:
            _log_artifact(mlflow_client, run_id, folder_at(entry["artifact"]), entry.get("to"))
        if "end" in entry:
            send()
            mlflow_client.set_terminated(run_id, entry["end"], entry["time"])
        position = end
    send()


def _address(path: Folder) -> str:
    return str(path if is_remote(path) else path.absolute())


def _log_artifact(mlflow_client: Any, run_id: str, path: Folder, to: str | None) -> None:
    if exists(path):
        with local_copy(path) as file:
            mlflow_client.log_artifact(run_id, str(file), to)


def deliver_run(run: RunRef) -> str | None:
    """Deliver all entries of a run. The driver's entries come last.

    If MLflow has just failed, nothing is requested for `PAUSE_SECONDS`.

    Returns:
        None if everything was delivered; otherwise a sentence that says why not.
    """
    since = time.monotonic() - _refused_at.get(run.tracking_uri, -math.inf)
    if since < PAUSE_SECONDS:
        return "MLflow did not answer a moment ago"
    folder = local_outbox(run.outbox)
    return deliver_files(run.tracking_uri, _files(folder, run.run_id), run.outbox)


def deliver_folder(tracking_uri: str, outbox: str) -> str | None:
    """Deliver the remaining entries of all runs in an outbox. The runs must have ended.

    If everything was delivered, the outbox is removed.

    Returns:
        The same as `deliver_run`.
    """
    fetch_all(outbox)
    folder = local_outbox(outbox)
    paths = _files(folder, "*")
    left = deliver_files(tracking_uri, paths, outbox)
    if left is None and paths:
        if is_remote(folder_at(outbox)):
            remove_folder(folder_at(outbox))
        for path in (*paths, *(path.with_suffix(SENT) for path in paths)):
            path.unlink(missing_ok=True)
        remove_tree(folder / IMAGES)
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):  # the other verb may have files there
                empty.rmdir()
    return left


def deliver_files(tracking_uri: str, paths: list[Path], outbox: str) -> str | None:
    """Deliver the entries of these files of an outbox.

    Returns:
        The same as `deliver_run`.
    """
    waiting = [path for path in paths if num_waiting(path)]
    if not waiting:
        return None
    mlflow_client = new_client(tracking_uri)
    refused: dict[str, str] = {}
    for path in waiting:
        run_id = path.name.partition(".")[0]
        if run_id in refused:
            continue  # the end of a run must come after its metrics
        try:
            deliver(path, mlflow_client)
        except Exception as error:  # stores raise many kinds
            refused[run_id] = reason_of(error)
            _refused_at[tracking_uri] = time.monotonic()
    for path in waiting:
        with contextlib.suppress(UserError):
            _save(outbox, path)
    count = sum(num_waiting(path) for path in waiting)
    if not count:
        return None
    why = next(iter(refused.values()), "it is being written")
    return (
        f"{count} entries for MLflow at {redacted(tracking_uri)} are not delivered ({why}); they "
        f"are kept in {outbox}, and the same command delivers them"
    )


def _last_steps(path: Path) -> dict[str, int]:
    last: dict[str, int] = dict(read_header(path).get("last_steps", {}))
    for entry in _read(path, 0):
        steps = [(name, step) for name, _, _, step in entry.get("metrics", ())]
        if "at_step" in entry:
            name, step = entry["at_step"]
            steps.append((f"{IMAGES}/{name}", step))
        for name, step in steps:
            last[name] = max(step, last.get(name, step))
    return last


def num_waiting(path: Path) -> int:
    """Return the number of entries in a file that are not delivered."""
    return sum(1 for _ in _read(path, _sent(path)))


def _files(folder: Path, run_id: str) -> list[Path]:
    paths = folder.glob(f"{run_id}.*{ENTRIES}")
    return sorted(paths, key=lambda path: (path.name.endswith(f".{DRIVER}{ENTRIES}"), path.name))


def _read(path: Path, start: int) -> Iterator[dict[str, Any]]:
    for entry, _ in _read_with_ends(path, start):
        yield entry


def _read_with_ends(path: Path, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the complete entries from byte `start` on, each with the offset of its end."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written
            start += len(line)
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a machine that crashed while it wrote may leave such a line
            yield entry, start


def _save(outbox: str, path: Path) -> None:
    if is_remote(folder_at(outbox)):
        save(outbox, path.name, _last_steps(path), _sent(path))


def _sent(path: Path) -> int:
    try:
        return min(int(path.with_suffix(SENT).read_text()), path.stat().st_size)
    except (OSError, ValueError):
        return 0


def _note_sent(path: Path, position: int) -> None:
    replace_text(path.with_suffix(SENT), str(position))


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({os.strerror(error.errno or 0)}); make room there"
    )
