"""One reader of a set of photographs, measured in a process of its own.

It runs as `python -P readers.py TASK`, with a `Task` in JSON, under any Python that has the reader
installed. So a peer may live in an environment of its own. It prints its result in JSON: the
seconds and the processor seconds to the first batch, the seconds of all batches, the processor
seconds of a sample, and the number of samples; or `missing`, with the reason. Imports are not
measured. The processor time of a sample is that after the first batch, of this process and of its
children that have ended.
"""

import importlib
import io
import itertools
import json
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH_SIZE, SIDE = 64, 224
Samples = Callable[[], Iterator[Any]]
"""Opens a set and yields the bytes of its photographs, in a shuffled order."""


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        reader: The name of a function in `READERS`.
        decoder: The name of a function in `DECODERS`.
        place: The folder or URL of the tars.
        copy: The folder or URL of the same photographs in the reader's own format.
        cache: A local folder for what is fetched.
        num_samples: The photographs in the set.
        limit: The photographs to read.
        per_shard: The photographs in a shard.
        threads: The threads that decode.
        verify: Whether our reader compares each sample with its sha256.
    """

    reader: str
    decoder: str
    place: str
    copy: str
    cache: str
    num_samples: int
    limit: int
    per_shard: int
    threads: int = 1
    verify: bool = False


def ours(task: Task) -> Samples:
    """`ShardReader` in the order of `epoch_positions`."""
    from shards import PADDING, RemoteReading, ShardReader, ShardSet, epoch_positions

    if task.place.startswith("s3://"):
        importlib.import_module("s3fs")

    def samples() -> Iterator[Any]:
        shard_set = ShardSet.open(task.place, RemoteReading(Path(task.cache)))
        reader = ShardReader(shard_set, "train", verify_samples=task.verify)
        for numbers in epoch_positions(
            reader, seed=0, epoch=0, rank=0, world_size=1, batch_size=BATCH_SIZE
        ):
            for sample in reader.read_many(
                numbers[numbers != PADDING], copy=task.decoder == "copies"
            ):
                members = sample.members
                if sample.key and members["cls"]:
                    yield members["jpg"]

    return samples


def webdataset(task: Task) -> Samples:
    """`webdataset.WebDataset`, shards shuffled, with a buffer of 1,000 samples."""
    import webdataset

    def samples() -> Iterator[Any]:
        tars = _tars(task)
        found = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000)
        return (sample["jpg"] for sample in found if sample["__key__"] and sample["cls"])

    return samples


def wids(task: Task) -> Samples:
    """`wids.ShardListDataset`, each sample by its number, in a random order of the whole set."""
    import wids

    def samples() -> Iterator[Any]:
        sizes = _shard_sizes(task)
        shards = [
            {"url": tar, "nsamples": size} for tar, size in zip(_tars(task), sizes, strict=True)
        ]
        found = wids.ShardListDataset(
            shards, transformations=[], keep=True, lru_size=len(shards), cache_dir=task.cache
        )
        order = list(range(task.num_samples))
        random.Random(0).shuffle(order)
        for number in order:
            sample = found[number]
            if sample["__key__"] and sample[".cls"]:
                yield sample[".jpg"].read()

    return samples


def streaming(task: Task) -> Samples:
    """mosaicml-streaming's `StreamingDataset` of MDS files, shuffled, with its defaults."""
    from streaming import StreamingDataset

    def samples() -> Iterator[Any]:
        where = {"local": task.copy}
        if "://" in task.copy:
            where = {"remote": task.copy, "local": f"{task.cache}/mds"}
        found = StreamingDataset(**where, shuffle=True, shuffle_seed=0, batch_size=BATCH_SIZE)
        return (sample["jpg"] for sample in found if sample["key"] and sample["cls"] is not None)

    return samples


def ray_data(task: Task) -> Samples:
    """`ray.data.read_webdataset`, files shuffled. Ray is started before the clock."""
    import pyarrow.fs
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

    def samples() -> Iterator[Any]:
        options: dict[str, Any] = {}
        paths = _tars(task)
        if "://" in task.place:
            address = os.environ["AWS_ENDPOINT_URL"].partition("://")[2]
            options["filesystem"] = pyarrow.fs.S3FileSystem(
                endpoint_override=address, scheme="http"
            )
            paths = [path.partition(f"{address}/")[2] for path in paths]
        rows = ray.data.read_webdataset(paths, decoder=False, shuffle="files", **options)
        for batch in rows.iter_batches(batch_size=BATCH_SIZE, batch_format="pyarrow"):
            yield from (data.as_py() for data in batch["jpg"])

    return samples


READERS: dict[str, tuple[str, Callable[[Task], Samples]]] = {
    "ours": ("shards", ours),
    "webdataset": ("webdataset", webdataset),
    "wids": ("wids", wids),
    "streaming": ("streaming", streaming),
    "ray": ("ray.data", ray_data),
}
"""The package and the function of each reader."""


def turbo_crop(data: Any, rng: Any) -> Any:
    """Our decoder: libjpeg-turbo at the smallest scale that suffices, then antialiased."""
    from pipeline.media.image.jpeg import random_resized_crop

    return random_resized_crop(data, size=SIDE, rng=rng)


def pillow_crop(data: Any, rng: Any) -> Any:
    """Crop as torchvision's RandomResizedCrop does with a Pillow image, decoded whole."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        box = (0, 0, width, height)
        for area, ratio, across, down in rng.random((10, 4)).tolist():
            pixels = width * height * (0.08 + 0.92 * area)
            aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
            wide, high = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < wide <= width and 0 < high <= height:
                left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
                box = (left, top, left + wide, top + high)
                break
        window = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
        return np.asarray(window)


DECODERS: dict[str, Callable[[Any, Any], Any]] = {
    "views": lambda data, rng: data,
    "copies": lambda data, rng: data,
    "bytes": lambda data, rng: bytes(data),
    "pillow": pillow_crop,
    "turbo": turbo_crop,
}


def measure(task: Task) -> dict[str, Any]:
    """Read `task.limit` samples in batches. Return the times, or what is missing."""
    package, reader = READERS[task.reader]
    try:
        importlib.import_module(package)
        samples = reader(task)
    except ImportError as error:
        return {"missing": f"{package} cannot be imported ({error})"}
    import numpy as np

    rng, decode = np.random.default_rng(0), DECODERS[task.decoder]
    decode(_photograph(), rng)  # imports and warms up
    is_array = task.decoder in ("pillow", "turbo")
    cpu_before = _cpu_seconds()
    started, read, first, cpu = time.perf_counter(), 0, 0.0, 0.0
    with ThreadPoolExecutor(task.threads) as pool:
        content = itertools.islice(samples(), task.limit)
        while batch := list(itertools.islice(content, BATCH_SIZE)):
            if task.threads > 1:
                rngs = rng.spawn(len(batch))
                decoded = list(pool.map(decode, batch, rngs))
            else:
                decoded = [decode(data, rng) for data in batch]
            if is_array:
                np.stack(decoded)
            read += len(batch)
            if not first:
                first, cpu = time.perf_counter() - started, _cpu_seconds()
    return {
        "samples": read,
        "first_batch_seconds": first,
        "first_batch_cpu_seconds": cpu - cpu_before,
        "seconds": time.perf_counter() - started,
        "cpu_seconds_per_sample": (_cpu_seconds() - cpu) / max(1, read - BATCH_SIZE),
    }


def _photograph() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, "JPEG")
    return file.getvalue()


def _cpu_seconds() -> float:
    uses = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def _shard_sizes(task: Task) -> list[int]:
    starts = range(0, task.num_samples, task.per_shard)
    return [min(task.per_shard, task.num_samples - start) for start in starts]


def _tars(task: Task) -> list[str]:
    """Return the addresses of the tars: paths, or HTTP URLs of a bucket."""
    names = [f"shard-{number:05d}.tar" for number in range(len(_shard_sizes(task)))]
    place = task.place
    if place.startswith("s3://"):
        place = f"{os.environ['AWS_ENDPOINT_URL']}/{place.removeprefix('s3://')}"
    return [f"{place}/{name}" for name in names]


if __name__ == "__main__":
    result = measure(Task(**json.loads(sys.argv[1])))
    print(json.dumps(result), flush=True)
    os._exit(0)  # what is read ahead is not waited for
