"""`python -m benchmarks.listing ROWS [--tars] [--ray]`: what the driver takes to list and plan.

The sources are made up: rows of a Parquet listing that name images in object storage, or members of
tars on this disk. Nothing is decoded. For each step the script prints the CPU time of this process
by source, the time by the clock, and the most memory that the process has held.
"""

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.ray_session import ray_session
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.preprocess.compare import compare
from pipeline.preprocess.ledger import LEDGER_SCHEMA, Ledger, source_states
from pipeline.preprocess.sources import StoredTable, TableStore, list_sources, write_plan

ROWS_AT_ONCE = 100_000
MEMBERS_OF_TAR = 10_000
SAMPLES_PER_SHARD = 1000
_Result = TypeVar("_Result")


def main() -> None:
    """Measure listing, planning, and a comparison in which nothing has changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=lambda text: int(float(text)))
    parser.add_argument("--tars", action="store_true")
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perceiver-listing-") as folder:
        make = _make_tars if given.tars else _make_listing
        config = make(Path(folder), given.rows)
        session = (lambda: ray_session(None)) if given.ray else None
        with TableStore(session) as store:
            _measure(config, given.rows, Path(folder), store)


def _measure(config: Config, rows: int, folder: Path, store: TableStore) -> None:
    print(f"{rows} sources; before: {_memory()}")
    sources = _timed("list", rows, lambda: list_sources(config, store=store))
    assert sources.num_rows == rows
    _timed("digest", rows, lambda: sources.content_digest)
    _timed("plan", rows, lambda: write_plan(sources, folder / "plan.parquet", SAMPLES_PER_SHARD))
    calls = ((chunk.stored,) for chunk in sources.chunks)
    made = _timed("states", rows, lambda: [table for (table,), _ in store.run(_as_ledger, calls)])
    ledger = Ledger(tuple(made))
    again = pa.array([], pa.binary())
    nothing = pa.chunked_array([], pa.string())
    changes = _timed("compare", rows, lambda: compare(ledger, sources, again, nothing))
    assert not changes


def _as_ledger(chunk: StoredTable) -> Iterator[pa.Table]:
    table = chunk.load()
    columns: dict[str, Any] = {
        "uri": table["uri"],
        "split": table["split"].cast(pa.string()),
        "state": source_states(table),
        "sha256": pa.repeat(pa.scalar("0" * 64), table.num_rows),
        "target": table["target"],
        "shard": pa.repeat(pa.scalar(0, pa.int64()), table.num_rows),
    }
    yield pa.table(columns, schema=LEDGER_SCHEMA)


def _timed(name: str, rows: int, work: Callable[[], _Result]) -> _Result:
    cpu, clock = time.process_time(), time.perf_counter()
    result = work()
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    print(f"{name:8} {cpu / rows * 1e6:6.1f} µs of CPU a source, {clock:7.1f} s, {_memory()}")
    sys.stdout.flush()
    return result


def _memory() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
    return f"peak {peak} MiB"


def _make_listing(folder: Path, rows: int) -> Config:
    path = folder / "rows.parquet"
    schema = pa.schema([("image", pa.string()), ("kind", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            numbers = range(start, min(rows, start + ROWS_AT_ONCE))
            names = [f"s3://bucket/images/{n // 1000:06d}/picture-{n:09d}.jpg" for n in numbers]
            kinds = [f"class {n % 100}" for n in numbers]
            writer.write_table(pa.table({"image": names, "kind": kinds}, schema=schema))
    return _config(
        train=str(path),
        allow=("s3://bucket/",),
        columns={"image": "image"},
        target={"kind": "class", "column": "kind"},
    )


def _make_tars(folder: Path, rows: int) -> Config:
    for number, start in enumerate(range(0, rows, MEMBERS_OF_TAR)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for row in range(start, min(rows, start + MEMBERS_OF_TAR)):
                tar.addfile(tarfile.TarInfo(f"{row:09d}.jpg"), io.BytesIO())
    return _config(train=str(folder), layout="tars", target={"kind": "none"})


def _config(**data: Any) -> Config:
    config = load_config("digits")
    given = config.data.model_dump(include={"image", "samples_per_shard"}) | data
    section = type(config.data).model_validate({**given, "validation": 0.1}, strict=False)
    return config.model_copy(update={"data": section})


if __name__ == "__main__":
    main()
