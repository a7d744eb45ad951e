"""What the machines of a training fetch of a set in object storage, beside what docs/scale.md says.

    python -m benchmarks.scale [--samples N] [--machines N]

Each machine reads one epoch, one machine after the other, each with a cache of its own, from an S3
server on the loopback that counts requests and bytes.
"""

import argparse
import math
import os
import tempfile
from pathlib import Path

from benchmarks.loopback_store import BUCKET, LoopbackStore, loopback_store
from benchmarks.reading import make_set
from pipeline.runs.console import Console
from shards import ShardReader, ShardSet, epoch_positions
from shards.remote_tars import RemoteReading

SAMPLES_PER_SHARD = 100
BATCH = 48
"""The global batch. 1, 2, 3 and 4 machines divide it."""
REQUEST_BYTES = 1 << 20


def fetched(
    store: LoopbackStore, cache: Path, *, machine: int, machines: int, nodes: int
) -> tuple[int, int, int]:
    """Read one machine's part of an epoch.

    Args:
        store: The store with the set.
        cache: A folder without shards.
        machine: The machine's number.
        machines: The number of machines.
        nodes: The value of `training.canonical_nodes`.

    Returns:
        The samples it read, its requests, and the bytes that it was sent.
    """
    # No sample is read alone while its shard is on the way, so the figures repeat.
    reading = RemoteReading(cache, request_bytes=REQUEST_BYTES, early_share=0.0)
    shard_set = ShardSet.open(f"s3://{BUCKET}/set")
    reader = ShardReader(shard_set, "train", remote=reading)
    store.counts()
    samples = 0
    for numbers in epoch_positions(
        reader,
        seed=0,
        epoch=0,
        rank=machine,
        world_size=machines,
        batch_size=BATCH // machines,
        drop_last=True,
        nodes=nodes,
    ):
        samples += sum(1 for _ in reader.read_many(numbers))
    return samples, *store.counts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--samples", type=int, default=4800)
    parser.add_argument("--machines", type=int, default=4)
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name, loopback_store(0.0, 0.0) as store:
        folder = Path(name) / "set"
        size = make_set(folder, args.samples, SAMPLES_PER_SHARD)
        store.upload(folder, "set")
        os.environ.update(store.environment())
        tars = [path.stat().st_size for path in folder.rglob("*.tar")]
        # One more request for each shard: for its index.
        requests = sum(math.ceil(each / REQUEST_BYTES) + 1 for each in tars)
        console.say(f"{args.samples} samples in {len(tars)} shards, {size / 1e6:.1f} MB")
        rows = []
        for machines in range(1, args.machines + 1):
            for nodes in sorted({1, machines}):
                found = [
                    fetched(
                        store, Path(name) / f"{machines}-{nodes}-{machine}",
                        machine=machine, machines=machines, nodes=nodes,
                    )
                    for machine in range(machines)
                ]  # fmt: skip
                share = 1 if nodes == 1 else 1 / nodes
                rows.append((
                    str(machines), str(nodes),
                    str(sum(each[0] for each in found)),
                    *(f"{max(each[part] for each in found) / unit:.1f}"
                      for part, unit in ((1, 1), (2, 1e6))),
                    f"{requests * share:.1f}", f"{sum(tars) * share / 1e6:.1f}",
                ))  # fmt: skip
    console.table(
        "an epoch of each machine: the most of any",
        ("machines", "canonical_nodes", "samples in all", "requests", "MB", "requests, formula",
         "MB, formula"),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
