"""Builds a shard set from its sources with Ray Data.

The unit of work is a shard. One task reads the sources of a shard, decodes them and writes the
whole shard. The plan fixes which sources make which shard. So the bytes do not depend on the number
of tasks, on their order, or on interruptions. A shard that was committed is not made again.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.ray_session import ray_session
from pipeline.config.data import DataConfig
from pipeline.config.folders import Folder
from pipeline.config.placement import TaskPlacement, place_of
from pipeline.errors import UserError
from pipeline.media.registered import modality
from pipeline.preprocess.build_files import BuildFile, build_files, remove_build_files
from pipeline.preprocess.compare import STALE_SCHEMA, SetChanges, uri_texts
from pipeline.preprocess.identity import sandbox_settings
from pipeline.preprocess.ledger import Ledger
from pipeline.preprocess.position_tables import position_table_of
from pipeline.preprocess.ray_tasks import run_tasks
from pipeline.preprocess.shard_task import ShardTask
from pipeline.preprocess.sources import (
    SourceTable,
    fit_rows,
    shard_addresses,
    write_plan,
)
from pipeline.runs.console import Console
from pipeline.runs.user_errors import EXPECTED, raise_user_errors
from shards import Manifest, PositionSpec, ShardSet, quarantine_table
from shards.census import Census
from shards.digests import canonical_json, sha256_hex
from shards.object_staging import ObjectStaging, read_manifest
from shards.staging import FolderStaging, Staging

STALE_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ShardSetSpec:
    """The shard set to make, described by a configuration or by the manifest of an older set.

    Attributes:
        data: The section `data` of the configuration.
        seed: The seed of the splits and of the order in the shards.
        identity: The set identity: everything that determines the samples besides the sources.
        specs: The specifications of the position tables.
        final: The folder of the finished set, on this machine or at a URL.
        address: The address of the Ray cluster, or None for a cluster on this machine.
        tasks: Where the tasks run.
    """

    data: DataConfig
    seed: int
    identity: dict[str, Any]
    specs: tuple[PositionSpec, ...]
    final: Folder
    address: str | None
    tasks: TaskPlacement = field(default_factory=TaskPlacement)

    def staging(self, fingerprint: str = "") -> Staging:
        """Return where the set is made.

        Args:
            fingerprint: The name of the build.
        """
        if isinstance(self.final, Path):
            folder = self.final.with_name(f"{self.final.name}.partial")
            return FolderStaging(folder, self.final, fingerprint)
        url = str(self.final)
        return ObjectStaging(url, fingerprint, read_manifest(url))


@dataclass(frozen=True)
class ExistingSet:
    """The set that exists already and was made with the same settings.

    Attributes:
        shard_set: The set.
        ledger: The sources that the set was made from.
        quarantine: The rows of its `quarantine.parquet`.
    """

    shard_set: ShardSet
    ledger: Ledger
    quarantine: pa.Table

    @property
    def manifest(self) -> Manifest:
        """The manifest of the set."""
        return self.shard_set.manifest


def build(
    spec: ShardSetSpec,
    source_table: SourceTable,
    base: ExistingSet | None,
    changes: SetChanges | None,
    console: Console,
) -> int:
    """Make the whole set, or only what has changed since the existing set was made.

    Args:
        spec: The set to make.
        source_table: All sources.
        base: The existing set, or None to make every shard.
        changes: What has changed since the existing set was made, or None to decode every source.
        console: The console that shows the progress.

    Returns:
        The number of sources that had to be decoded.

    Raises:
        UserError: Too many sources cannot be used. Then no files of this build are left. After
            other errors the finished shards stay, and the same command continues from them.
    """
    fingerprint = _fingerprint(spec, source_table, base, changes)
    staging = spec.staging(fingerprint)
    staging.prepare()
    sources = source_table if changes is None else source_table.with_chunks(changes.to_decode)
    try:
        with build_files(spec.final, fingerprint) as files:
            _build(spec, source_table, sources, base, changes, console, staging, files)
    except EXPECTED:
        if not staging.has_shards():
            remove_leftovers(spec)
        raise
    return sources.num_rows


def _build(
    spec: ShardSetSpec,
    source_table: SourceTable,
    sources: SourceTable,
    base: ExistingSet | None,
    changes: SetChanges | None,
    console: Console,
    staging: Staging,
    files: tuple[BuildFile, BuildFile],
) -> None:
    kept, rewritten = _shards_of(base, changes)
    first_number = int(max(kept + rewritten, default=-1)) + 1
    plan, stale = files
    num_new, addresses = 0, None
    if sources.num_rows:
        num_new = write_plan(sources, plan.path, spec.data.samples_per_shard, str(plan.address))
        addresses = shard_addresses(sources, spec.data.samples_per_shard)
        plan.send()
    if changes is not None:
        _write_stale(changes, stale.path)
        stale.send()
    fitted = _fitted(spec, source_table, base)
    task = ShardTask(
        plan=str(plan.address),
        staging=staging,
        reaches=source_table.reaches,
        value_addresses=source_table.value_addresses,
        media=sandbox_settings(spec.data, source_table.classes, fitted),
        limits={
            "seconds": spec.data.decode_seconds,
            "memory_bytes": spec.data.decode_memory_mib * 2**20,
            "required": spec.data.sandbox == "require",
        },
        num_new=num_new,
        first_number=first_number,
        base=None if base is None else str(spec.final),
        stale=None if changes is None else str(stale.address),
        rewritten=np.asarray(rewritten, np.int64),
        kept=np.asarray(kept, np.int64),
    )
    if base is not None:
        staging.keep(base.shard_set, kept)
    census = Census(source_table.classes)
    if task.num_jobs:
        with raise_user_errors(), ray_session(spec.address):
            place = place_of(spec.tasks)
            run_tasks(task, sources.num_rows, console, census, addresses, place)
    carried, set_aside = _carried(base, changes), staging.quarantined()
    try:
        _check_bad(spec, source_table, set_aside, carried)
    except UserError:
        remove_leftovers(spec)
        raise
    staging.publish(
        numbers=[*kept, *rewritten, *range(first_number, first_number + num_new)],
        census=census,
        config=spec.identity | fitted | _positions_kept(base),
        input_digest=source_table.content_digest,
        positions=dict(map(position_table_of, _tables(spec, base))),
        quarantine=pa.concat_tables([*set_aside, carried, refused_rows(source_table)]),
    )


def _write_stale(changes: SetChanges, path: Path) -> None:
    """Write the sources to drop. The rows of a shard lie together, so that a task reads few."""
    with pq.ParquetWriter(path, STALE_SCHEMA) as writer:
        for table in changes.stale:
            writer.write_table(table.load().sort_by("shard"), row_group_size=STALE_ROWS)


def remove_leftovers(spec: ShardSetSpec) -> None:
    """Remove everything that an unfinished run left beside the set."""
    spec.staging().remove()
    remove_build_files(spec.final)


def _tables(spec: ShardSetSpec, base: ExistingSet | None) -> Iterable[PositionSpec]:
    """Return the position tables of the set: those that it was made with. Others are added."""
    return spec.specs if base is None else base.manifest.positions.values()


def _positions_kept(base: ExistingSet | None) -> dict[str, Any]:
    """Return the field `positions` of an existing set: it says with which tables it was made."""
    return {} if base is None else {"positions": base.manifest.config["positions"]}


def refused_rows(source_table: SourceTable) -> pa.Table:
    """Return the refused sources as rows of the quarantine."""
    refused = source_table.refused
    return pa.table(
        {
            "source_uri": uri_texts(refused["uri"]),
            "split": refused["split"].cast(pa.string()),
            "reason": refused["reason"],
            "traceback": pa.repeat(pa.scalar("", pa.string()), refused.num_rows),
        },
        schema=quarantine_table([]).schema,
    )


def _fingerprint(
    spec: ShardSetSpec,
    source_table: SourceTable,
    base: ExistingSet | None,
    changes: SetChanges | None,
) -> str:
    """Return a sha256 of everything that the shards in the staging folder depend on."""
    hashed = hashlib.sha256()
    if changes is not None:
        changes.add_to(hashed)
    facts = {
        "settings": spec.identity,
        "sources": source_table.state_digest,
        "roots": source_table.roots,
        "base": base and base.manifest.digest,
        "changes": None if changes is None else hashed.hexdigest(),
    }
    return sha256_hex(canonical_json(facts))


def _shards_of(base: ExistingSet | None, changes: SetChanges | None) -> tuple[list[int], list[int]]:
    """Return the numbers of the existing shards to keep, and of those that lose samples."""
    if base is None or changes is None:
        return [], []
    numbers = base.shard_set.shard_table["number"]
    losing = pc.is_in(numbers, value_set=changes.stale_shards())
    return (
        numbers.filter(pc.invert(losing)).to_pylist(),
        numbers.filter(losing).to_pylist(),
    )


def _carried(base: ExistingSet | None, changes: SetChanges | None) -> pa.Table:
    """Return the rows of the existing quarantine that belong to unchanged sources."""
    if base is None or changes is None:
        return quarantine_table([])
    unchanged = refused_by_decoders(base.quarantine, changes, changes.named_unchanged)
    return base.quarantine.filter(unchanged)


def refused_by_decoders(quarantine: pa.Table, changes: SetChanges, uris: pa.Array) -> pa.Array:
    """Find the rows of the existing set's quarantine that come from decoding these sources.

    The listing may also have refused another source with the same URI. Such a row has no traceback.
    A source that is in a shard can have a row too, if it was damaged after its first samples.

    Args:
        quarantine: The quarantine of the existing set.
        changes: What has changed since the existing set was made.
        uris: The URIs of the sources, as bytes: some of `changes.named`.

    Returns:
        A boolean for each row of the quarantine.
    """
    named, rows = uri_texts(uris), quarantine["source_uri"]
    alone = uri_texts(uris.filter(pc.is_in(uris, value_set=changes.named_failed)))
    decoded = pc.not_equal(quarantine["traceback"], "")
    return pc.or_(
        pc.is_in(rows, value_set=alone), pc.and_(pc.is_in(rows, value_set=named), decoded)
    )


def _check_bad(
    spec: ShardSetSpec, source_table: SourceTable, quarantined: list[pa.Table], carried: pa.Table
) -> None:
    """Refuse the set if too many sources of it, or all sources of a split, cannot be used."""
    rows = pa.concat_tables([carried, *quarantined])
    bad, total = rows.num_rows, source_table.num_rows
    if bad == 0:
        return
    named = "; ".join(
        f"{row['source_uri']}: {row['reason']}" for row in rows.slice(0, 3).to_pylist()
    )
    if bad == total:
        raise UserError(f"none of the {total} files can be used, for example {named}")
    if bad / total > spec.data.max_bad_fraction:
        raise UserError(
            f"{bad} of {total} files ({bad / total:.1%}) cannot be used, more than "
            f"data.max_bad_fraction={spec.data.max_bad_fraction:g}: {named}"
        )
    counted = pc.value_counts(rows["split"].combine_chunks()).to_pylist()
    bad_in = {row["values"]: row["counts"] for row in counted}
    for split, count in source_table.counts().items():
        if bad_in.get(split, 0) == count:
            raise UserError(f"none of the {count} files of split {split!r} can be used: {named}")


def _fitted(
    spec: ShardSetSpec, source_table: SourceTable, base: ExistingSet | None
) -> dict[str, Any]:
    """Return what was fitted to the training rows for each modality, by the keys of the manifest.

    The samples of an existing set use the fit of that set, so it must stay.
    """
    fitted: dict[str, Any] = {}
    for name, fmt in spec.data.formats.items():
        if key := modality(name).fitted_key:
            fitted[key] = base.manifest.config[key] if base else fit_rows(source_table, fmt)
    return fitted
