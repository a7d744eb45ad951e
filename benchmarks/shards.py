"""`perceiver bench shards`: compare our shard reader with webdataset and Ray Data."""

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pictures import DISTINCT, photographs
from pipeline.errors import UserError
from pipeline.media.image.jpeg import draw_part, random_resized_crop
from pipeline.runs.console import Console
from shards import (
    PADDING,
    RawSample,
    Sample,
    ShardReader,
    ShardSet,
    epoch_positions,
    publish,
    write_shard,
)

SIDE = 224
BATCH_SIZE = 64
CHUNK = 1024
SAMPLES_PER_SHARD = 1000
RAW, DECODED = "raw samples, shuffled", "decoded, random resized crop 224, uint8 batches"


@dataclass(frozen=True)
class Contestant:
    """One row of a table.

    Attributes:
        work: The title of the table.
        label: The label of the row.
        open: A function that opens an iterator over the samples of a folder, or over its batches as
            counts. The time to open it is not measured.
    """

    work: str
    label: str
    open: Callable[[Path, int], contextlib.AbstractContextManager[Iterator[int]]]

    def rate(self, folder: Path, limit: int) -> float:
        """Return the samples per second over `limit` samples."""
        with self.open(folder, limit) as counts:
            started = time.perf_counter()
            read = sum(counts)
            return read / (time.perf_counter() - started)


def bench_shards(
    console: Console, *, num_samples: int, num_decoded: int, rounds: int
) -> dict[str, Any]:
    """Measure all contestants on one set of photographs, in turn in each round.

    Args:
        console: The console for progress notices.
        num_samples: The number of photographs in the set, of which 500 are distinct.
        num_decoded: The number of photographs that a round decodes.
        rounds: The number of rounds. Rates are medians over rounds.

    Returns:
        `samples`, `bytes_per_sample` and `rows`. A row has the work, the label, the rate of each
        round, the median rate, and the median ratio to webdataset's rate at the same work in the
        same round.

    Raises:
        UserError: If a number is out of range.
    """
    if min(num_samples, num_decoded, rounds) < 1 or num_decoded > num_samples:
        raise UserError(
            f"--samples {num_samples}, --decoded {num_decoded}, --rounds {rounds}: must be at "
            "least 1, and --decoded no more than --samples"
        )
    contestants = _contestants()
    rates: dict[Contestant, list[float]] = {contestant: [] for contestant in contestants}
    with tempfile.TemporaryDirectory(prefix="perceiver-bench-") as name:
        folder = Path(name) / "set"
        console.notice(f"making {num_samples} photographs in shards")
        size = _make_set(folder, num_samples)
        for number in range(rounds):
            for contestant in contestants:
                limit = num_samples if contestant.work == RAW else num_decoded
                rate = contestant.rate(folder, limit)
                rates[contestant].append(rate)
                console.notice(
                    f"round {number + 1} · {contestant.work} · {contestant.label}: {rate:,.0f}/s"
                )
    peers = {c.work: found for c, found in rates.items() if c.label.startswith("webdataset")}
    rows = [
        {
            "work": contestant.work,
            "label": contestant.label,
            "rates": found,
            "samples_per_second": statistics.median(found),
            "vs_webdataset": statistics.median(
                mine / theirs for mine, theirs in zip(found, peers[contestant.work], strict=True)
            ),
        }
        for contestant, found in rates.items()
    ]
    return {"samples": num_samples, "bytes_per_sample": size // num_samples, "rows": rows}


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `bench_shards` on the console."""
    console.say(
        f"{result['samples']} JPEG photographs of {result['bytes_per_sample']:,} bytes, 500 x 375, "
        f"in local shards of {SAMPLES_PER_SHARD}; one process"
    )
    for work in (RAW, DECODED):
        rows = [
            (row["label"], round(row["samples_per_second"]), row["vs_webdataset"],
             ", ".join(f"{rate:,.0f}" for rate in row["rates"]))
            for row in result["rows"] if row["work"] == work
        ]  # fmt: skip
        console.table(work, ("", "samples/s", "× webdataset", "by round"), rows)


def _make_set(folder: Path, num_samples: int) -> int:
    distinct = list(photographs(min(DISTINCT, num_samples)))
    staging = folder.with_name("staging")
    starts = range(0, num_samples, SAMPLES_PER_SHARD)
    total = 0
    for shard, start in enumerate(starts):
        stop = min(start + SAMPLES_PER_SHARD, num_samples)
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


def _contestants() -> list[Contestant]:
    return [
        Contestant(RAW, "ours, views of memory", _ours(bool)),
        Contestant(RAW, "ours, every byte copied", _ours(bytes)),
        Contestant(RAW, "ours, each sample's sha256 compared", _ours(bool, verify_samples=True)),
        Contestant(RAW, "webdataset", _webdataset_raw),
        Contestant(RAW, "Ray Data read_webdataset", _ray_raw),
        Contestant(DECODED, "ours, 1 thread", _ours_decoded(1)),
        Contestant(DECODED, "ours, 2 threads", _ours_decoded(2)),
        Contestant(DECODED, "webdataset + Pillow", _webdataset_decoded),
    ]


def _ours(touch: Callable[[memoryview], Any], verify_samples: bool = False) -> Callable[..., Any]:
    @contextlib.contextmanager
    def open_set(folder: Path, limit: int) -> Iterator[Iterator[int]]:
        shard_set = ShardSet.open(folder)
        reader = ShardReader(shard_set, "train", verify_samples=verify_samples)
        yield (
            1
            for numbers in epoch_positions(
                reader, seed=0, epoch=0, rank=0, world_size=1, batch_size=CHUNK
            )
            for sample in reader.read_many(numbers[numbers != PADDING])
            if sample.key and touch(sample.members["jpg"]) and sample.members["cls"]
        )

    return open_set


def _webdataset(folder: Path, limit: int) -> Iterator[dict[str, Any]]:
    import webdataset

    tars = sorted(map(str, folder.glob("*.tar")))
    samples = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000)
    return itertools.islice(iter(samples), limit)


@contextlib.contextmanager
def _webdataset_raw(folder: Path, limit: int) -> Iterator[Iterator[int]]:
    yield (bool(sample["__key__"] and sample["jpg"]) for sample in _webdataset(folder, limit))


@contextlib.contextmanager
def _ray_raw(folder: Path, limit: int) -> Iterator[Iterator[int]]:
    import ray

    from cluster.ray_session import ray_session

    with ray_session(None):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        tars = sorted(map(str, folder.glob("*.tar")))
        rows = ray.data.read_webdataset(tars, decoder=False, shuffle="files")
        batches = rows.limit(limit).iter_batches(batch_size=256, batch_format="pyarrow")
        yield (len(batch["jpg"]) for batch in batches)


def _ours_decoded(num_threads: int) -> Callable[..., Any]:
    @contextlib.contextmanager
    def open_set(folder: Path, limit: int) -> Iterator[Iterator[int]]:
        reader = ShardReader(ShardSet.open(folder), "train", verify_samples=False)
        batches = epoch_positions(
            reader, seed=0, epoch=0, rank=0, world_size=1, batch_size=BATCH_SIZE, drop_last=True
        )
        with ThreadPoolExecutor(num_threads) as pool:
            yield (
                len(_crops(reader.read_many(numbers), pool))
                for numbers in itertools.islice(batches, -(-limit // BATCH_SIZE))
            )

    return open_set


def _crops(samples: Sequence[RawSample], pool: ThreadPoolExecutor) -> np.ndarray:
    """Return random crops of the samples, uint8 `[samples, SIDE, SIDE, 3]`."""
    batch = np.empty((len(samples), SIDE, SIDE, 3), np.uint8)

    def decode(row: int) -> None:
        sample = samples[row]
        rng = np.random.default_rng(sample.index)
        batch[row] = random_resized_crop(sample.members["jpg"], size=SIDE, rng=rng)

    for _ in pool.map(decode, range(len(samples))):
        pass
    return batch


@contextlib.contextmanager
def _webdataset_decoded(folder: Path, limit: int) -> Iterator[Iterator[int]]:
    rng = np.random.default_rng(0)
    crops = (_pillow_crop(sample["jpg"], rng) for sample in _webdataset(folder, limit))
    batches = iter(lambda: list(itertools.islice(crops, BATCH_SIZE)), [])
    yield (len(np.stack(batch)) for batch in batches)


def _pillow_crop(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Crop as torchvision's RandomResizedCrop does with a Pillow image."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        left, top, width, height = draw_part(image.height, image.width, rng)
        box = (left, top, left + width, top + height)
        window = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
        return np.asarray(window)
