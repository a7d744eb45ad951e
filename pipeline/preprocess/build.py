"""Builds a shard set from its sources with Ray Data.

The unit of work is a shard. One task reads the sources of a shard, decodes them and writes the
whole shard. The plan fixes which sources make which shard. So the bytes do not depend on the number
of tasks, on their order, or on interruptions. A shard that was committed is not made again.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.ray_session import ray_session
from perceiver_model.fourier import position_table
from pipeline.config.data import DataConfig
from pipeline.config.folders import Folder
from pipeline.config.placement import TaskPlacement, place_of
from pipeline.errors import UserError
from pipeline.media.errors import MediaError
from pipeline.media.registered import modality
from pipeline.preprocess.build_files import BuildFile, build_files, remove_build_files
from pipeline.preprocess.changes import Changes
from pipeline.preprocess.identity import sandbox_settings
from pipeline.preprocess.ledger import Ledger
from pipeline.preprocess.ray_tasks import run_tasks
from pipeline.preprocess.shard_task import ShardTask, read_contents, source_sha256
from pipeline.preprocess.sources import (
    Reach,
    SourceRow,
    SourceTable,
    fit_rows,
    read_plan,
    shard_addresses,
    write_plan,
)
from pipeline.preprocess.sources.digests import table_digest
from pipeline.runs.console import Console
from pipeline.runs.user_errors import EXPECTED, raise_user_errors
from shards import Manifest, PositionSpec, ShardSet, quarantine_table
from shards.digests import canonical_json, sha256_hex
from shards.object_staging import ObjectStaging, read_manifest
from shards.staging import FolderStaging, Staging

HASHED_AT_ONCE = 1000


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


def sha256s(source_table: SourceTable, sources: pa.Table) -> list[str | None]:
    """Hash the content of some sources.

    Args:
        source_table: All sources.
        sources: The rows of its table to hash.

    Returns:
        For each row 64 hexadecimal digits, or None if the source cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="perceiver-plan-") as folder:
        plan = Path(folder) / "doubtful.parquet"
        part = source_table.with_table(sources)
        shards = write_plan(part, plan, HASHED_AT_ONCE)
        addresses = shard_addresses(part, HASHED_AT_ONCE)
        rows = (
            row
            for shard in range(shards)
            for row in read_plan(
                plan, shard, addresses[shard] if addresses else None, part.value_addresses
            )
        )
        return [_sha256(row, source_table.reaches[row.split]) for row in rows]


def _sha256(row: SourceRow, reach: Reach) -> str | None:
    try:
        return source_sha256(row, read_contents(row, reach))
    except (MediaError, OSError):
        return None


def build(
    spec: ShardSetSpec,
    source_table: SourceTable,
    base: ExistingSet | None,
    changes: Changes | None,
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
    sources = source_table.table if changes is None else changes.to_decode
    try:
        with build_files(spec.final, fingerprint) as files:
            _build(spec, source_table, base, changes, console, staging, files)
    except EXPECTED:
        if not staging.has_shards():
            remove_leftovers(spec)
        raise
    return sources.num_rows


def _build(
    spec: ShardSetSpec,
    source_table: SourceTable,
    base: ExistingSet | None,
    changes: Changes | None,
    console: Console,
    staging: Staging,
    files: tuple[BuildFile, BuildFile],
) -> None:
    sources = source_table.table if changes is None else changes.to_decode
    kept, rewritten = _shards_of(base, changes)
    first_number = int(max(kept + rewritten, default=-1)) + 1
    plan, stale = files
    num_new, addresses = 0, None
    if sources.num_rows:
        new = source_table if changes is None else source_table.with_table(sources)
        num_new = write_plan(new, plan.path, spec.data.samples_per_shard, str(plan.address))
        addresses = shard_addresses(new, spec.data.samples_per_shard)
        plan.send()
    if changes is not None:
        pq.write_table(changes.stale, stale.path)
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
    )
    if base is not None:
        staging.keep(base.shard_set, kept)
    if num_new + len(rewritten):
        with raise_user_errors(), ray_session(spec.address):
            jobs = num_new + len(rewritten)
            run_tasks(task, jobs, sources.num_rows, console, addresses, place_of(spec.tasks))
    carried = _carried(base, changes)
    try:
        _check_bad(spec, source_table, staging.quarantined(), carried)
    except UserError:
        remove_leftovers(spec)
        raise
    staging.publish(
        numbers=[*kept, *rewritten, *range(first_number, first_number + num_new)],
        config=spec.identity | fitted | _positions_kept(base),
        input_digest=source_table.content_digest,
        classes=tuple(source_table.classes),
        positions=dict(map(position_table_of, _tables(spec, base))),
        quarantine=pa.concat_tables([carried, refused_rows(source_table)]),
    )


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


def uri_texts(uris: pa.ChunkedArray) -> pa.Array:
    """Return URIs as the quarantine's text: bytes that are not UTF-8 become backslash escapes."""
    try:
        return uris.cast(pa.string()).combine_chunks()
    except pa.ArrowInvalid:
        texts = (
            uri.decode("utf-8", "surrogateescape").encode(errors="backslashreplace").decode()
            for uri in uris.to_pylist()
        )
        return pa.array(texts, pa.string())


def _fingerprint(
    spec: ShardSetSpec, source_table: SourceTable, base: ExistingSet | None, changes: Changes | None
) -> str:
    """Return a sha256 of everything that the shards in the staging folder depend on."""
    facts = {
        "settings": spec.identity,
        "sources": source_table.state_digest,
        "roots": source_table.roots,
        "base": base and base.manifest.digest,
        "changes": None
        if changes is None
        else table_digest([changes.to_decode.select(["uri"]), changes.stale]),
    }
    return sha256_hex(canonical_json(facts))


def _shards_of(base: ExistingSet | None, changes: Changes | None) -> tuple[list[int], list[int]]:
    """Return the numbers of the existing shards to keep, and of those that lose samples."""
    if base is None or changes is None:
        return [], []
    numbers = base.shard_set.shard_table["number"]
    losing = pc.is_in(numbers, value_set=pc.unique(changes.stale["shard"]))
    return (
        numbers.filter(pc.invert(losing)).to_pylist(),
        numbers.filter(losing).to_pylist(),
    )


def _carried(base: ExistingSet | None, changes: Changes | None) -> pa.Table:
    """Return the rows of the existing quarantine that belong to unchanged sources."""
    if base is None or changes is None:
        return quarantine_table([])
    unchanged = pa.chunked_array([changes.unchanged])
    return base.quarantine.filter(refused_by_decoders(base, unchanged))


def refused_by_decoders(base: ExistingSet, uris: pa.ChunkedArray) -> pa.Array:
    """Find the rows of the existing set's quarantine that come from decoding these sources.

    The listing may also have refused another source with the same URI. Such a row has no traceback.
    A source that is in a shard can have a row too, if it was damaged after its first samples.

    Args:
        base: The existing set.
        uris: The URIs of the sources, as bytes.

    Returns:
        A boolean for each row of the quarantine.
    """
    ledger = base.ledger.table
    failed = ledger["uri"].filter(pc.is_null(ledger["shard"]))
    named, rows = uri_texts(uris), base.quarantine["source_uri"]
    alone = uri_texts(uris.filter(pc.is_in(uris, value_set=failed.combine_chunks())))
    decoded = pc.not_equal(base.quarantine["traceback"], "")
    return pc.or_(
        pc.is_in(rows, value_set=alone), pc.and_(pc.is_in(rows, value_set=named), decoded)
    )


def _check_bad(
    spec: ShardSetSpec, source_table: SourceTable, quarantined: list[pa.Table], carried: pa.Table
) -> None:
    """Refuse the set if too many sources of it, or all sources of a split, cannot be used."""
    rows = pa.concat_tables([carried, *quarantined])
    bad, total = rows.num_rows, source_table.table.num_rows
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


def position_table_of(spec: PositionSpec) -> tuple[PositionSpec, np.ndarray]:
    """Return a specification with its table, float32 [tokens, channels]."""
    return spec, np.asarray(position_table(spec.shape, spec.num_bands, spec.max_resolution))


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
