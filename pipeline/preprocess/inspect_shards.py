"""`perceiver inspect` shows what a shard set holds."""

from typing import Any

from pipeline.runs.console import Console
from shards import ShardSet

FLOAT32_BYTES = 4


def inspect_shards(path: str) -> dict[str, Any]:
    """Return counts and sizes of a shard set, from its manifest and its shard table.

    Args:
        path: The folder or URL of the set.

    Returns:
        `digest`, `classes`, `splits` (the samples, shards and bytes of each), `class_counts`,
        `members`, `quarantined`, and `positions`: for each Fourier table its shape, its bytes, and
        the bytes that it would take in every sample.
    """
    shard_set = ShardSet.open(path)
    manifest = shard_set.manifest
    samples = sum(manifest.counts.values())
    splits = {}
    for split, count in manifest.counts.items():
        table = shard_set.shards(split)
        size = sum(table["bytes"].to_pylist())
        splits[split] = {"samples": count, "shards": table.num_rows, "bytes": size}
    positions = [
        {
            "grid": list(spec.shape),
            "num_bands": spec.num_bands,
            "channels": spec.num_channels,
            "bytes": spec.num_tokens * spec.num_channels * FLOAT32_BYTES,
            "bytes_if_in_every_sample": samples
            * spec.num_tokens
            * spec.num_channels
            * FLOAT32_BYTES,
        }
        for spec in manifest.positions.values()
    ]
    return {
        "digest": shard_set.digest,
        "classes": list(manifest.classes),
        "splits": splits,
        "class_counts": manifest.class_counts,
        "members": list(manifest.members),
        "quarantined": manifest.quarantined,
        "positions": positions,
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what `inspect_shards` returned."""
    console.say(f"digest {result['digest']}")
    console.table(
        "splits",
        ("split", "samples", "shards", "bytes"),
        [(name, s["samples"], s["shards"], s["bytes"]) for name, s in result["splits"].items()],
    )
    splits = list(result["splits"])
    rows = [
        (name, *(result["class_counts"].get(split, {}).get(name, 0) for split in splits))
        for name in result["classes"]
    ]
    console.table("samples of each class", ("class", *splits), rows)
    console.say(f"members of a sample: {', '.join(result['members'])}")
    console.say(f"quarantined files: {result['quarantined']}")
    for table in result["positions"]:
        grid = " x ".join(map(str, table["grid"]))
        console.say(
            f"Fourier features of a grid of {grid}, {table['channels']} channels: stored once, "
            f"{table['bytes']:,} bytes; in every sample they would take "
            f"{table['bytes_if_in_every_sample']:,}"
        )
