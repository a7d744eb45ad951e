"""`perceiver bench shards --remote`: readers of a set in object storage behind a slow link."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.loopback_store import BUCKET, LoopbackStore, loopback_store
from benchmarks.readers import BATCH_SIZE, Task
from benchmarks.reading import Row, make_copy, make_set, measure, require_counts, summary
from pipeline.errors import UserError
from pipeline.runs.console import Console

SAMPLES_PER_SHARD = 200
RAW = "raw samples from object storage, shuffled"
OURS, AGAIN = "ours, empty cache", "ours, all in the cache"


def bench_remote_shards(
    console: Console,
    *,
    num_samples: int,
    rounds: int,
    latency: float,
    link: float,
    peers_python: str | None,
) -> dict[str, Any]:
    """Measure all readers on one set of photographs in an S3 server, in turn in each round.

    Args:
        console: The console for progress notices.
        num_samples: The number of photographs in the set, of which 500 are distinct.
        rounds: The number of rounds. Figures are medians over rounds.
        latency: The seconds that are added to each request.
        link: The speed of the link in 10^6 bytes per second; 0 is without limit.
        peers_python: The Python that has the peers installed; None is this one.

    Returns:
        `samples`, `bytes_per_sample`, `latency`, `link` and `rows`. A row has the label, and either
        `missing` or the figures: seconds to the first batch, samples per second, requests, bytes of
        the answers, and the processor microseconds of a sample.

    Raises:
        UserError: A number is out of range, or moto is not installed.
    """
    require_counts(samples=num_samples, rounds=rounds)
    if latency < 0 or link < 0:
        raise UserError(f"--latency {latency * 1000:g}, --link {link:g}: give no negative number")
    python = peers_python or sys.executable
    with (
        tempfile.TemporaryDirectory(prefix="perceiver-bench-") as name,
        loopback_store(latency, link) as store,
    ):
        folder = Path(name) / "set"
        console.notice(f"making {num_samples} photographs in shards")
        size = make_set(folder, num_samples, SAMPLES_PER_SHARD)
        shard_bytes = SAMPLES_PER_SHARD * size // num_samples
        mds = Path(name) / "streaming"
        missing = {"streaming": make_copy("streaming", folder, mds, shard_bytes, python)}
        store.upload(folder, "set")
        if not missing["streaming"]:
            store.upload(mds, "streaming")
        rows = _rows(num_samples)
        found: dict[str, list[dict[str, Any]]] = {row.label: [] for row in rows}
        for number in range(rounds):
            cache = Path(name) / f"cache-{number}"
            for row in rows:
                own = cache / row.task.reader  # both of our rows have one
                task = replace(row.task, cache=str(own))
                reason = missing.get(task.reader)
                result = (
                    {"missing": reason}
                    if reason
                    else _measure(replace(row, task=task), store, python)
                )
                found[row.label].append(result)
                console.notice(f"round {number + 1} · {row.label}: {_brief(result)}")
    return {
        "samples": num_samples,
        "bytes_per_sample": size // num_samples,
        "latency": latency,
        "link": link,
        "rows": [summary(row, found[row.label]) for row in rows],
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `bench_remote_shards` on the console."""
    link = f"{result['link']:g} MB/s" if result["link"] else "no limit of bytes"
    console.say(
        f"{result['samples']} JPEG photographs of {result['bytes_per_sample']:,} bytes in shards "
        f"of {SAMPLES_PER_SHARD}, in an S3 server (moto) on the loopback; "
        f"{result['latency'] * 1000:g} ms added to each request, {link}; each reader in one "
        f"process of its own, batches of {BATCH_SIZE}, all imports done"
    )
    content = result["samples"] * result["bytes_per_sample"]
    rows = [(row["label"], *_cells(row, content)) for row in result["rows"]]
    columns = ("", "first batch s", "samples/s", "requests", "MB", "× content", "CPU µs/sample")
    console.table(RAW, columns, rows)
    for row in result["rows"]:
        if "missing" in row:
            console.say(f"{row['label']}: not measured: {row['missing']}")


def _rows(num_samples: int) -> list[Row]:
    def row(label: str, reader: str, decoder: str = "bytes", **options: Any) -> Row:
        task = Task(
            reader=reader, decoder=decoder, place=f"s3://{BUCKET}/set",
            copy=f"s3://{BUCKET}/{reader}", cache="", num_samples=num_samples,
            limit=num_samples, per_shard=SAMPLES_PER_SHARD, **options,
        )  # fmt: skip
        return Row(RAW, label, task)

    return [
        row(OURS, "ours", "copies", verify=True),
        row(AGAIN, "ours", "copies", verify=True),
        row("webdataset", "webdataset"),
        row("mosaicml-streaming", "streaming"),
        row("Ray Data read_webdataset", "ray"),
    ]


def _measure(row: Row, store: LoopbackStore, python: str) -> dict[str, Any]:
    store.counts()  # starts again from 0
    result = measure(row, python, store.environment())
    requests, num_bytes = store.counts()
    return result | {"requests": requests, "bytes": num_bytes}


def _cells(row: dict[str, Any], content: int) -> tuple[Any, ...]:
    if "missing" in row:
        reason = "not installed" if "cannot be imported" in row["missing"] else "failed"
        return (reason, "", "", "", "", "")
    return (
        round(row["first_batch_seconds"], 2),
        round(row["samples_per_second"]),
        round(row["requests"]),
        round(row["bytes"] / 1e6, 1),
        round(row["bytes"] / content, 2),
        round(row["cpu_microseconds"], 1),
    )


def _brief(result: dict[str, Any]) -> str:
    if "missing" in result:
        return str(result["missing"])
    rate = result["samples"] / result["seconds"]
    return f"first batch after {result['first_batch_seconds']:.2f} s, {rate:,.0f} samples/s"
