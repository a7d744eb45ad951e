"""Readers of shards, ours and peers', each measured in processes of their own."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shards
from benchmarks.pictures import DISTINCT, photographs
from benchmarks.readers import Task
from pipeline.errors import UserError
from shards import Sample, publish, write_shard

_HERE = Path(__file__).parent
_SECONDS = 900
"""The most time of a reader for a set."""


@dataclass(frozen=True)
class Row:
    """A row of a table: what it is called, and what is measured."""

    work: str
    label: str
    task: Task

    @property
    def is_ours(self) -> bool:
        """Whether the reader is ours, and so runs under this Python."""
        return self.task.reader == "ours"


def make_set(
    folder: Path, num_samples: int, per_shard: int, contents: Sequence[bytes] | None = None
) -> int:
    """Write a shard set of photographs. Return the bytes of the photographs.

    Args:
        folder: The folder of the set.
        num_samples: The photographs, of which 500 are distinct.
        per_shard: The photographs in a shard.
        contents: What the samples hold in turn, in place of photographs.
    """
    distinct = contents or list(photographs(min(DISTINCT, num_samples)))
    staging = folder.with_name("staging")
    starts = range(0, num_samples, per_shard)
    total = 0
    for shard, start in enumerate(starts):
        stop = min(start + per_shard, num_samples)
        pictures = [distinct[number % len(distinct)] for number in range(start, stop)]
        total += sum(map(len, pictures))
        samples = (
            Sample(f"{start + n:08d}", {"jpg": data, "cls": b"0"}, 0, f"{start + n}.jpg", "0" * 64)
            for n, data in enumerate(pictures)
        )
        write_shard(staging, shard, "train", samples)
    publish(
        staging, folder, numbers=range(len(starts)), config={}, input_digest="", classes=["one"]
    )
    return total


def make_copy(kind: str, tars: Path, target: Path, shard_bytes: int, python: str) -> str:
    """Make a peer's own copy of a set. Return an empty text, or why there is none.

    Args:
        kind: A function of `benchmarks/peer_copies.py`.
        tars: The folder of the set.
        target: The folder of the copy.
        shard_bytes: The most bytes in a file of the copy.
        python: The Python that has the peer installed.
    """
    script = str(_HERE / "peer_copies.py")
    done = subprocess.run(
        [python, "-P", script, kind, str(tars), str(target), str(shard_bytes)],
        capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    return "" if not done.returncode else _last_line(done.stderr)


def measure(row: Row, python: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run the process of a row. Return what it printed, or `missing` with the reason."""
    root = str(Path(shards.__file__).parents[1])
    own = {"PYTHONPATH": root} if row.is_ours else {}
    done = subprocess.run(
        [sys.executable if row.is_ours else python, "-P", str(_HERE / "readers.py"),
         json.dumps(asdict(row.task))],
        capture_output=True, text=True, timeout=_SECONDS, check=False,
        env={**os.environ, **environment, **own},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"missing": f"failed: {_last_line(done.stderr)}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def summary(row: Row, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the medians of a row over the rounds, or why it is missing."""
    about = {"work": row.work, "label": row.label, "decoder": row.task.decoder}
    if missing := next((each["missing"] for each in rounds if "missing" in each), None):
        return {**about, "missing": missing}
    rates = [each["samples"] / each["seconds"] for each in rounds]
    found = {
        **about,
        "rates": rates,
        "samples_per_second": statistics.median(rates),
        "first_batch_seconds": statistics.median(each["first_batch_seconds"] for each in rounds),
        "cpu_microseconds": 1e6
        * statistics.median(each["cpu_seconds_per_sample"] for each in rounds),
    }
    for name in ("requests", "bytes"):
        if name in rounds[0]:
            found[name] = statistics.median(each[name] for each in rounds)
    return found


def require_counts(**counts: int) -> None:
    """Raise UserError unless each option is at least 1."""
    if wrong := [f"--{name} {value}" for name, value in counts.items() if value < 1]:
        raise UserError(f"{', '.join(wrong)}: give at least 1")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
