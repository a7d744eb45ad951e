"""The outbox of a run in object storage, where nothing can be appended to.

Each process appends to a file of its own machine, and delivers from there. At each checkpoint and
at the end, it uploads an object with what MLflow has not received yet, `RUN.WRITER.jsonl`. So the
same command can deliver it later, from any machine. Both begin with a header line:

    {"writer": "5f0c…", "last_steps": {"loss": 640}}

`writer` names the local file from which the object was uploaded. `last_steps` holds the last step
of each metric that came before the entries.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.folders import folder_at
from pipeline.runs.storage import names, read_bytes, write_bytes

ENTRIES, SENT = ".jsonl", ".sent"
_MAX_BYTES = 4 << 30
_MAX_HEADER_BYTES = 64 << 20


def local_outbox(outbox: str) -> Path:
    """Return the folder of this machine that stands for a run's outbox: itself, if it is local."""
    folder = folder_at(outbox)
    if isinstance(folder, Path):
        return folder
    states = os.environ.get("XDG_STATE_HOME")
    root = Path(states) if states else Path.home() / ".local" / "state"
    return root / "perceiver" / "outbox" / hashlib.sha256(str(folder).encode()).hexdigest()[:32]


def fetch(outbox: str, name: str) -> None:
    """Make this machine's file of an outbox the newest one, before entries are added to it.

    The file of this machine is kept if the object was uploaded from it. Otherwise another machine
    has continued the run, and its object takes the file's place.

    Args:
        outbox: The outbox of the run. Nothing is done for a local one.
        name: The name of the file, `RUN.WRITER.jsonl`.

    Raises:
        UserError: The storage cannot be read or written.
        OSError: The local file cannot be written.
    """
    folder = folder_at(outbox)
    if isinstance(folder, Path):
        return
    path = local_outbox(outbox) / name
    try:
        header, entries = _split(read_bytes(folder / name, _MAX_BYTES))
    except FileNotFoundError:
        if path.is_file():
            return
        header, entries = {}, b""
    if path.is_file() and header.get("writer") == read_header(path).get("writer"):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _header_line(secrets.token_hex(8), header.get("last_steps", {}))
    path.with_suffix(SENT).unlink(missing_ok=True)
    path.write_bytes(line + entries)
    path.with_suffix(SENT).write_text(str(len(line)), "utf-8")
    write_bytes(folder / name, line + entries)


def fetch_all(outbox: str, run_id: str = "") -> None:
    """Fetch every object of an outbox, or of one run. Their processes must have ended.

    Raises:
        UserError, OSError: As `fetch`.
    """
    folder = folder_at(outbox)
    if not isinstance(folder, Path):
        for name in names(folder, ENTRIES):
            if name.startswith(run_id):
                fetch(outbox, name)


def save(outbox: str, name: str, last_steps: Mapping[str, int], sent: int) -> None:
    """Upload the entries of this machine's file that MLflow has not received yet.

    Args:
        outbox: The outbox of the run. Nothing is done for a local one.
        name: The name of the file.
        last_steps: The last step of each metric in the file.
        sent: The number of bytes of the file that were delivered.

    Raises:
        UserError: The storage cannot be written.
    """
    folder = folder_at(outbox)
    if isinstance(folder, Path):
        return
    path = local_outbox(outbox) / name
    with path.open("rb") as file:
        header, _ = _split(file.readline(_MAX_HEADER_BYTES))
        file.seek(max(sent, file.tell()))
        entries = file.read()
    whole = entries[: entries.rfind(b"\n") + 1]
    write_bytes(folder / name, _header_line(str(header.get("writer")), last_steps) + whole)


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a local file; empty if it has none."""
    try:
        with path.open("rb") as file:
            return _split(file.readline(_MAX_HEADER_BYTES))[0]
    except OSError:
        return {}


def _header_line(writer: str, last_steps: Mapping[str, int]) -> bytes:
    return json.dumps({"writer": writer, "last_steps": dict(last_steps)}).encode() + b"\n"


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header, which is empty if there is none, and the lines after it."""
    line, _, rest = data.partition(b"\n")
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return {}, data
    if not isinstance(header, dict) or not isinstance(header.get("last_steps"), dict):
        return {}, data
    return header, rest
