"""``perceiver preprocess``: raw media to a shard set, with Ray Data.

The unit of work is a shard: one task reads its files, decodes them and writes the shard whole. The
plan fixes which files make which shard, so the bytes do not depend on how many tasks ran, in which
order, or how often the work was interrupted; shards that are committed are not made again.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from cluster.ray_session import ray_session
from perceiver_model.fourier import position_table
from pipeline.causes import expected_errors
from pipeline.config import Config
from pipeline.console import Console
from pipeline.errors import UserError
from pipeline.listing import Listing, list_media, write_plan
from pipeline.positions import position_spec
from pipeline.shard_task import ShardTask
from pipeline.stages import StageRecord, read_stage, write_stage
from shards import (
    Quarantined,
    ShardSet,
    publish,
    read_quarantine,
    verify,
    write_position_table,
)

STAGE = "preprocess"
# Ray Data keeps a few bytes for each block; beyond this, a block holds several shards.
MAX_BLOCKS = 10_000


def preprocess(config: Config, console: Console, *, fresh: bool = False) -> dict[str, Any]:
    """Make the shard set of a configuration, or find that it is there and whole.

    Args:
        fresh: replace a set made with other settings or from other files.

    Returns:
        ``shards`` (path), ``digest``, ``counts`` by split, ``classes``, ``quarantined`` (rows of
        source and reason), ``seconds`` and ``skipped``.

    Raises:
        UserError: bad input, a set made with other settings, or too many bad files.
    """
    final = Path(config.shards_folder)
    if "://" in config.shards_folder:
        raise UserError(f"shards={config.shards_folder}: shards are written to a folder, not a URL")
    listing = list_media(config)
    settings = _settings(config)
    fingerprint = {**settings, "files": listing.state_digest}
    record = read_stage(config.folder, STAGE)
    if final.exists() and not fresh:
        done = _finished(final, record, fingerprint, console)
        if done is not None:
            return done
    started = time.time()
    plan = final.with_name(f"{final.name}.plan.parquet")
    staging = final.with_name(f"{final.name}.partial")
    _prepare_staging(staging, fingerprint, fresh)
    try:
        num_shards = write_plan(listing, plan, config.data.samples_per_shard)
        with expected_errors(), ray_session(config.cluster.address):
            quarantined = _write_shards(config, listing, plan, staging, num_shards, console)
        _check_bad(quarantined, listing, config)
        classifier = config.classifier(max(2, len(listing.classes)))
        spec = position_spec(classifier)
        if spec is not None:
            table = position_table(spec.shape, spec.num_bands, spec.max_resolution)
            write_position_table(staging, spec, np.asarray(table))
        (staging / _SETTINGS_FILE).unlink()
        manifest = publish(
            staging,
            final,
            numbers=range(num_shards),
            config=settings,
            input_digest=listing.content_digest,
            classes=listing.classes,
            positions=[] if spec is None else [spec],
            quarantine=[
                Quarantined(file.uri, file.split, "lies beside the class folders", "")
                for file in listing.loose
            ],
            replace=fresh,
        )
    except UserError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        plan.unlink(missing_ok=True)
    seconds = time.time() - started
    result = {
        "shards": str(final),
        "digest": manifest.digest,
        "counts": manifest.counts,
        "classes": list(manifest.classes),
        "quarantined": _quarantine_rows(final),
    }
    write_stage(config.folder, StageRecord(STAGE, fingerprint, result, seconds, done=True))
    return {**result, "seconds": seconds, "skipped": False}


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what :func:`preprocess` returned."""
    counts = ", ".join(f"{count} {split}" for split, count in result["counts"].items())
    state = "is there and verifies: skipped" if result["skipped"] else "written"
    console.say(f"{result['shards']}: {counts} in {len(result['classes'])} classes; {state}")
    console.say(f"digest {result['digest']}")
    bad = result["quarantined"]
    if bad:
        console.say(f"{len(bad)} files could not be used and are in quarantine.parquet:")
        for row in bad[:10]:
            console.say(f"  {row['source']}: {row['reason']}")
        if len(bad) > 10:
            console.say(f"  … and {len(bad) - 10} more")


_SETTINGS_FILE = "settings.json"


def _settings(config: Config) -> dict[str, Any]:
    """All that determines the samples, as JSON holds it; part of the set's digest."""
    spec = position_spec(config.classifier(2))
    data = config.tree()["data"]
    settings = {f"data.{key}": value for key, value in data.items() if key != "max_bad_fraction"}
    return {**settings, "seed": config.seed, "positions": spec and spec.to_dict()}


def _finished(
    final: Path, record: StageRecord | None, fingerprint: dict[str, Any], console: Console
) -> dict[str, Any] | None:
    """The earlier result if it is the one asked for and every byte of it is as written."""
    if record is None or not record.done:
        ShardSet.open(final)
        raise UserError(
            f"{final}: a shard set is there, but nothing tells what it was made from; choose "
            "another place with shards=…, or replace it with --fresh"
        )
    record.refuse_changes(fingerprint, f"{final}")
    problems = verify(final)
    if not problems:
        return {**record.result, "seconds": record.seconds, "skipped": True}
    first = problems[0]
    raise UserError(
        f"{final}/{first.file}: {first.what} ({len(problems)} problems in all); make the set again "
        "with --fresh"
    )


def _prepare_staging(staging: Path, fingerprint: dict[str, Any], fresh: bool) -> None:
    """Keep an interrupted run's shards only if the same settings and files made them."""
    settings = staging / _SETTINGS_FILE
    wanted = json.dumps(fingerprint, sort_keys=True)
    if staging.exists() and (
        fresh or not settings.is_file() or settings.read_text("utf-8") != wanted
    ):
        shutil.rmtree(staging)
    staging.mkdir(parents=True, exist_ok=True)
    settings.write_text(wanted, "utf-8")


def _write_shards(
    config: Config,
    listing: Listing,
    plan: Path,
    staging: Path,
    num_shards: int,
    console: Console,
) -> list[Quarantined]:
    """Run one Ray Data task for each shard of the plan; returns what was set aside."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    work = ShardTask(str(plan), str(staging), config.data.media, listing.roots)
    shards = ray.data.range(num_shards, override_num_blocks=min(num_shards, MAX_BLOCKS))
    written = shards.map_batches(work, batch_size=1)
    with console.bar("preprocess", len(listing.files), "files") as bar:
        for row in written.iter_rows():
            bar.advance(row["files"])
    quarantined: list[Quarantined] = []
    for part in sorted((staging / "quarantine").glob("*.parquet")):
        quarantined += read_quarantine(part)
    return quarantined


def _check_bad(quarantined: list[Quarantined], listing: Listing, config: Config) -> None:
    bad, total = len(quarantined), len(listing.files)
    if bad == 0:
        return
    share, first = bad / total, quarantined[0]
    named = "; ".join(f"{row.source_uri}: {row.reason}" for row in quarantined[:3])
    if bad == total:
        raise UserError(f"none of the {total} files can be used, for example {named}")
    if share > config.data.max_bad_fraction:
        raise UserError(
            f"{bad} of {total} files ({share:.1%}) cannot be used, more than "
            f"data.max_bad_fraction={config.data.max_bad_fraction:g}: {named}"
        )
    for split in listing.roots:
        in_split = sum(file.split == split for file in listing.files)
        if sum(row.split == split for row in quarantined) == in_split:
            raise UserError(
                f"none of the {in_split} files of split {split!r} can be used, for example "
                f"{first.source_uri}: {first.reason}"
            )


def _quarantine_rows(final: Path) -> list[dict[str, str]]:
    rows = read_quarantine(final / "quarantine.parquet")
    return [{"source": row.source_uri, "reason": row.reason} for row in rows]
