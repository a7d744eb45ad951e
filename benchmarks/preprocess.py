"""`perceiver bench preprocess`: compare with a plain process pool and Ray Data's own writer."""

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pictures import write_folder
from cluster.ray_session import ray_session
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.identity import sandbox_settings
from pipeline.preprocess.ray_tasks import run_tasks
from pipeline.preprocess.shard_task import ShardTask
from pipeline.preprocess.sources import list_sources, write_plan
from pipeline.runs.console import Console
from shards.census import Census
from shards.staging import FolderStaging

SIDE = 224
SAMPLES_PER_SHARD = 1000
"""The configuration's default number of samples in a shard."""
OURS, POOL, RAY = "ours, Ray Data", "the same work, process pool", "Ray Data's write_webdataset"


@dataclass(frozen=True)
class _Work:
    """The work of all contestants: the files, their plan and the number of processes."""

    config: Config
    task: ShardTask
    num_shards: int
    num_files: int
    num_workers: int


def bench_preprocess(
    console: Console, *, num_files: int, num_workers: int | None, rounds: int
) -> dict[str, Any]:
    """Turn JPEG files of 500 x 375 pixels into shards of 224 x 224 raw pixels, by all in turn.

    The clock starts after Ray is running and the processes have started and imported.

    Args:
        console: The console for progress notices.
        num_files: The number of photographs in the folder.
        num_workers: The number of processes. None means one per CPU.
        rounds: The number of rounds. Rates are medians over rounds.

    Returns:
        `files`, `bytes_per_file`, `workers` and `rows`. A row has the label, the rate of each
        round, the median rate, the rate per worker, and `vs_pool`, the median ratio to the process
        pool's rate in the same round.

    Raises:
        UserError: If a number is too small.
    """
    workers = num_workers or os.cpu_count() or 1
    if num_files < 2 * workers or rounds < 1 or workers < 1:
        raise UserError(
            f"--files {num_files}, --workers {workers}, --rounds {rounds}: must be at least 1 "
            "worker, 2 files for each, and 1 round"
        )
    rates: dict[str, list[float]] = {label: [] for label in (OURS, POOL, RAY)}
    with tempfile.TemporaryDirectory(prefix="perceiver-bench-") as name:
        folder = Path(name)
        console.notice(f"making {num_files} photographs")
        size = write_folder(folder / "raw", num_files)
        work = _prepare(folder, num_files, workers)
        with ray_session(None), _pool(workers) as pool:
            contestants: dict[str, Callable[[_Work], float]] = {
                OURS: lambda work: _ours(work, console),
                POOL: lambda work: _in_pool(work, pool),
                RAY: _ray_writer,
            }
            warm = replace(work, num_shards=min(workers, work.num_shards))
            for run in (contestants[OURS], contestants[POOL]):
                run(_into(warm, folder / f"warm-{run is contestants[OURS]}"))
            for number in range(rounds):
                for label, run in contestants.items():
                    out = folder / f"{number}-{list(contestants).index(label)}"
                    rate = num_files / run(_into(work, out))
                    shutil.rmtree(out)
                    rates[label].append(rate)
                    console.notice(f"round {number + 1} · {label}: {rate:,.0f} images/s")
    return {
        "files": num_files,
        "bytes_per_file": size // num_files,
        "workers": workers,
        "rows": [
            {
                "label": label,
                "rates": found,
                "images_per_second": statistics.median(found),
                "per_worker": statistics.median(found) / workers,
                "vs_pool": statistics.median(
                    mine / theirs for mine, theirs in zip(found, rates[POOL], strict=True)
                ),
            }
            for label, found in rates.items()
        ],
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `bench_preprocess` on the console."""
    rows = [
        (row["label"], round(row["images_per_second"]), round(row["per_worker"]), row["vs_pool"],
         ", ".join(f"{rate:,.0f}" for rate in row["rates"]))
        for row in result["rows"]
    ]  # fmt: skip
    console.table(
        f"{result['files']} JPEG files of {result['bytes_per_file']:,} bytes, 500 x 375, to shards "
        f"of {SIDE} x {SIDE} raw pixels; {result['workers']} processes",
        ("", "images/s", "per process", "× process pool", "by round"),
        rows,
    )


def _prepare(folder: Path, num_files: int, num_workers: int) -> _Work:
    config = load_config(
        "imagenet",
        [
            f"data.train={folder / 'raw'}",
            "data.validation=null",
            "data.test=null",
            "data.image.encoding=raw",
            f"output={folder}",
            f"data.samples_per_shard={max(1, min(SAMPLES_PER_SHARD, num_files // num_workers))}",
        ],
    )
    listing = list_sources(config)
    plan = folder / "plan.parquet"
    num_shards = write_plan(listing, plan, config.data.samples_per_shard)
    task = ShardTask(
        plan=str(plan),
        staging=FolderStaging(folder / "staging", folder / "set"),
        reaches=listing.reaches,
        media=sandbox_settings(config.data, listing.classes, {}),
        limits={"seconds": 60.0, "memory_bytes": 2 << 30},
        num_new=num_shards,
    )
    return _Work(config, task, num_shards, num_files, num_workers)


def _into(work: _Work, folder: Path) -> _Work:
    folder.mkdir()
    return replace(work, task=replace(work.task, staging=FolderStaging(folder, folder / "set")))


def _ours(work: _Work, console: Console) -> float:
    started = time.perf_counter()
    run_tasks(work.task, work.num_files, console, Census(()))
    return time.perf_counter() - started


def _pool(num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"))


def _in_pool(work: _Work, pool: ProcessPoolExecutor) -> float:
    jobs = [{"id": np.array([number])} for number in range(work.num_shards)]
    started = time.perf_counter()
    for _ in pool.map(work.task, jobs):
        pass
    return time.perf_counter() - started


def _ray_writer(work: _Work) -> float:
    """Read, transform and write as in Ray Data's documentation, and return the seconds."""
    import ray

    assert isinstance(work.task.staging, FolderStaging)
    folder = work.task.staging.folder
    started = time.perf_counter()
    files = ray.data.read_images(work.task.reaches["train"].root, mode="RGB", include_paths=True)
    files.map(_crop).write_webdataset(str(folder / "ray"))
    return time.perf_counter() - started


def _crop(row: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image, ImageOps

    pixels = ImageOps.fit(Image.fromarray(row["image"]), (SIDE, SIDE), Image.Resampling.BICUBIC)
    path = Path(row["path"])
    return {
        "__key__": path.stem,
        "image.npy": np.asarray(pixels),
        "cls": 0 if path.parent.name == "china" else 1,
    }
