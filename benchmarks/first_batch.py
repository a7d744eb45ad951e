"""`perceiver bench shards --first-batch`: how long readers take to their first batch.

The sets have 1, 10 and 100 shards of 1,000 small samples. What is measured is opening them: the
manifest, the indexes of the shards that the batch needs, and 64 samples.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.readers import BATCH_SIZE, Task
from benchmarks.reading import Row, make_set, measure, require_counts
from benchmarks.shards import PEERS
from pipeline.runs.console import Console

NUM_SHARDS = (1, 10, 100)
SAMPLES_PER_SHARD = 1000
_SAMPLE_BYTES = 1000
_READERS = {"ours": "ours, each sha256 compared"} | {
    name: label for name, label in PEERS.items() if name != "streaming"
}
"""mosaicml-streaming reads a format of its own, not these tars."""


def bench_first_batch(console: Console, *, rounds: int, peers_python: str | None) -> dict[str, Any]:
    """Measure each reader on each set, in turn in each round, in processes of their own.

    Args:
        console: The console for progress notices.
        rounds: The number of rounds. Figures are medians over rounds.
        peers_python: The Python that has the peers installed; None is this one.

    Returns:
        `rows`: for each reader and number of shards, `seconds` and `cpu_seconds` to the first batch
        of 64 samples, or `missing`.

    Raises:
        UserError: The number of rounds is out of range.
    """
    require_counts(rounds=rounds)
    python = peers_python or sys.executable
    # Bytes that are distinct, and that no reader decodes.
    contents = [np.random.default_rng(n).bytes(_SAMPLE_BYTES) for n in range(SAMPLES_PER_SHARD)]
    with tempfile.TemporaryDirectory(prefix="perceiver-bench-") as name:
        found: dict[Row, list[dict[str, Any]]] = {}
        for count in NUM_SHARDS:
            console.notice(f"making a set of {count} shards")
            folder = Path(name) / str(count) / "set"
            make_set(folder, count * SAMPLES_PER_SHARD, SAMPLES_PER_SHARD, contents)
            for reader, label in _READERS.items():
                found[Row(str(count), label, _task(folder, reader, count))] = []
        for number in range(rounds):
            for row, measured in found.items():
                measured.append(measure(row, python, {}))
                console.notice(f"round {number + 1} · {row.work} shards · {row.label}")
    return {"rows": [_summary(row, measured) for row, measured in found.items()]}


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `bench_first_batch` on the console."""
    console.table(
        f"to the first batch of {BATCH_SIZE}; {SAMPLES_PER_SHARD} samples in each shard",
        ("shards", "", "ms", "CPU ms"),
        [
            (row["shards"], row["label"], *(
                [round(1e3 * row["seconds"], 1), round(1e3 * row["cpu_seconds"], 1)]
                if "missing" not in row else ["", ""]
            ))
            for row in result["rows"]
        ],
    )  # fmt: skip
    for row in result["rows"]:
        if "missing" in row:
            console.say(f"{row['label']}, {row['shards']} shards: not measured: {row['missing']}")


def _task(folder: Path, reader: str, count: int) -> Task:
    return Task(
        reader=reader,
        decoder="copies" if reader == "ours" else "bytes",
        place=str(folder),
        copy="",
        cache=str(folder.with_name("cache")),
        num_samples=count * SAMPLES_PER_SHARD,
        limit=BATCH_SIZE,
        per_shard=SAMPLES_PER_SHARD,
        verify=True,
    )


def _summary(row: Row, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"shards": int(row.work), "label": row.label}
    if missing := next((each["missing"] for each in rounds if "missing" in each), None):
        return {**about, "missing": missing}
    return about | {
        name: statistics.median(each[f"first_batch_{name}"] for each in rounds)
        for name in ("seconds", "cpu_seconds")
    }
