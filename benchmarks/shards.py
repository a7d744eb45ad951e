"""`perceiver bench shards`: compare our shard reader with those of peers, on a local set."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.readers import Task
from benchmarks.reading import Row, make_copy, make_set, measure, require_counts, summary
from pipeline.errors import UserError
from pipeline.runs.console import Console

SAMPLES_PER_SHARD = 1000
RAW = "raw samples, shuffled"
SAME = "decoded by Pillow, random resized crop 224, uint8 batches of 64"
OWN = "decoded by libjpeg-turbo (simplejpeg) at the smallest scale that suffices, the same crops"
PEERS = {
    "wids": "wids",
    "webdataset": "webdataset",
    "streaming": "mosaicml-streaming",
}
"""The peers that read a local set in one process, by their reader."""


def bench_shards(
    console: Console, *, num_samples: int, num_decoded: int, rounds: int, peers_python: str | None
) -> dict[str, Any]:
    """Measure all readers on one set of photographs, in turn in each round.

    Args:
        console: The console for progress notices.
        num_samples: The number of photographs in the set, of which 500 are distinct.
        num_decoded: The number of photographs that a round decodes.
        rounds: The number of rounds. Figures are medians over rounds.
        peers_python: The Python that has the peers installed; None is this one.

    Returns:
        `samples`, `bytes_per_sample` and `rows`. A row has the work, the label, the decoder, and
        either `missing` or the figures: samples per second by round and their median, the seconds
        to the first batch, the processor microseconds of a sample after it, and the median ratio of
        its processor time to webdataset's at the same work.

    Raises:
        UserError: A number is out of range.
    """
    require_counts(samples=num_samples, decoded=num_decoded, rounds=rounds)
    if num_decoded > num_samples:
        raise UserError(f"--decoded {num_decoded}: the set has {num_samples}; give no more")
    python = peers_python or sys.executable
    with tempfile.TemporaryDirectory(prefix="perceiver-bench-") as name:
        folder = Path(name) / "set"
        console.notice(f"making {num_samples} photographs in shards")
        size = make_set(folder, num_samples, SAMPLES_PER_SHARD)
        missing = {}
        for kind in ("streaming",):
            shard_bytes = SAMPLES_PER_SHARD * size // num_samples
            missing[kind] = make_copy(kind, folder, Path(name) / kind, shard_bytes, python)
        found: dict[Row, list[dict[str, Any]]] = {
            row: [] for row in _rows(Path(name), num_samples, num_decoded)
        }
        for number in range(rounds):
            for row, measured in found.items():
                reason = missing.get(row.task.reader)
                result = {"missing": reason} if reason else measure(row, python, {})
                measured.append(result)
                console.notice(f"round {number + 1} · {row.label}: {_brief(result)}")
    rows = [summary(row, measured) for row, measured in found.items()]
    _add_ratios(rows)
    return {"samples": num_samples, "bytes_per_sample": size // num_samples, "rows": rows}


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `bench_shards` on the console."""
    console.say(
        f"{result['samples']} JPEG photographs of {result['bytes_per_sample']:,} bytes, 500 x 375, "
        f"in local shards of {SAMPLES_PER_SHARD}; each reader in one process of its own, all "
        "imports done"
    )
    for work in (RAW, SAME, OWN):
        rows = [
            (row["label"], *_cells(row))
            for row in result["rows"] if row["work"] == work
        ]  # fmt: skip
        columns = ("", "CPU µs/sample", "× webdataset", "samples/s", "first batch s", "by round")
        console.table(work, columns, rows)
    for row in result["rows"]:
        if "missing" in row:
            console.say(f"{row['label']}: not measured: {row['missing']}")


def _rows(folder: Path, num_samples: int, num_decoded: int) -> list[Row]:
    def task(reader: str, decoder: str, limit: int, **options: Any) -> Task:
        return Task(
            reader=reader, decoder=decoder, place=str(folder / "set"),
            copy=str(folder / reader), cache=str(folder / "cache"), num_samples=num_samples,
            limit=limit, per_shard=SAMPLES_PER_SHARD, **options,
        )  # fmt: skip

    raw = [
        Row(RAW, "ours, views of memory", task("ours", "views", num_samples)),
        Row(RAW, "ours, every byte copied", task("ours", "copies", num_samples)),
        Row(
            RAW,
            "ours, copied, each sha256 compared",
            task("ours", "copies", num_samples, verify=True),
        ),
        *(Row(RAW, label, task(peer, "bytes", num_samples)) for peer, label in PEERS.items()),
        # It is so slow that it reads no more than is decoded.
        Row(RAW, "Ray Data read_webdataset", task("ray", "bytes", num_decoded)),
    ]
    same = [
        Row(SAME, label, task(reader, "pillow", num_decoded))
        for reader, label in {"ours": "ours", **PEERS}.items()
    ]
    own = [
        Row(OWN, "ours, 1 thread", task("ours", "turbo", num_decoded)),
        Row(OWN, "ours, 2 threads", task("ours", "turbo", num_decoded, threads=2)),
    ]
    return [*raw, *same, *own]


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    base = {
        row["work"]: row["cpu_microseconds"]
        for row in rows
        if row["label"] == "webdataset" and "missing" not in row
    }
    base |= {OWN: base[SAME]} if SAME in base else {}
    for row in rows:
        if "missing" not in row and row["work"] in base:
            row["cpu_vs_webdataset"] = row["cpu_microseconds"] / base[row["work"]]


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    if "missing" in row:
        return ("not installed" if "cannot be imported" in row["missing"] else "failed",
                "", "", "", "")  # fmt: skip
    rates = ", ".join(f"{rate:,.0f}" for rate in row["rates"])
    return (
        round(row["cpu_microseconds"], 1),
        row.get("cpu_vs_webdataset", ""),
        round(row["samples_per_second"]),
        round(row["first_batch_seconds"], 3),
        rates,
    )


def _brief(result: dict[str, Any]) -> str:
    if "missing" in result:
        return str(result["missing"])
    return f"{1e6 * result['cpu_seconds_per_sample']:,.1f} µs of CPU a sample"
