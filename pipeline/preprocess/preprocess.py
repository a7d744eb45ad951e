"""`perceiver preprocess` and `retry-quarantine` turn raw media into a shard set.

If a set with the same settings exists, only the changes among its sources are processed. New and
changed sources become new shards. Shards with changed or removed sources are written again without
them. All other shards are kept as they are.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.placement import remote_options
from cluster.ray_session import ray_session
from perceiver_model.config_checks import flatten
from pipeline.config.base import differences
from pipeline.config.folders import Folder, folder_at, output_address
from pipeline.config.placement import place_of
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.build import (
    ExistingSet,
    ShardSetSpec,
    build,
    refused_by_decoders,
    refused_rows,
    remove_leftovers,
)
from pipeline.preprocess.compare import SetChanges, compare
from pipeline.preprocess.identity import (
    OTHERWISE,
    data_config,
    needed_positions,
    refuse_other_identity,
    set_identity,
    stored_addresses,
    stored_reading,
)
from pipeline.preprocess.ledger import Ledger, ledger_path, write_ledger
from pipeline.preprocess.position_tables import add_missing_tables
from pipeline.preprocess.sources import SourceTable, StoredTable, TableStore, list_sources
from pipeline.runs.console import Console
from pipeline.runs.object_lock import object_lock
from pipeline.runs.records import RunRecord, write_run_record
from pipeline.runs.storage import exists
from shards import ShardSet, recover
from shards.files import exclusive_lock, remove_temporaries
from shards.manifest import MANIFEST_FILE
from shards.redaction import is_redacted, without_secrets
from shards.verify import check_sizes

STAGE = "preprocess"
MAX_ROWS_TOLD = 1000


def preprocess(config: Config, console: Console, *, fresh: bool = False) -> dict[str, Any]:
    """Make the shard set of a configuration, or bring it up to date.

    Args:
        config: The configuration.
        console: The console that shows the progress.
        fresh: Whether to replace an existing set.

    Returns:
        `shards` (the path), `digest`, `counts` by split, `classes`, `num_quarantined`,
        `quarantined` (`source` and `reason` of the first 1000), `decoded` (the number of sources
        that were new, changed or tried again), `added_positions` (the number of position tables
        that the finished set got in addition), `seconds`, and `skipped` (whether the set was up to
        date).

    Raises:
        UserError: The input is bad, the set was made with other settings, or too many files are
            bad.
    """
    spec = ShardSetSpec(
        data=config.data,
        seed=config.seed,
        identity=set_identity(config),
        specs=needed_positions(config),
        final=_set_folder(config.shards_folder),
        address=config.cluster.address,
        tasks=config.cluster.preprocess,
    )
    with _alone(spec.final):
        result = _bring_up_to_date(spec, console, fresh=fresh)
    record = RunRecord(STAGE, spec.identity, {}, result["seconds"], done=True)
    write_run_record(config.folder, record)
    return result


def retry_quarantine(
    path: str,
    console: Console,
    *,
    address: str | None = None,
    sources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Try the quarantined sources of a set again. New and changed sources are processed too.

    Args:
        path: The folder of the set.
        console: The console that shows the progress.
        address: The address of the Ray cluster, as in `cluster.address`.
        sources: The folder, listing or URL of each split whose stored address lacks its password or
            signature.

    Returns:
        The same as `preprocess`.

    Raises:
        UserError: `perceiver preprocess` did not make the set, its quarantine is empty, or it is
            unknown where the sources lie.
    """
    final = _set_folder(path)
    with _alone(final):
        return _retry(path, final, console, address, sources or {})


def _set_folder(address: str) -> Folder:
    """Return the folder of a set that is to be written.

    Raises:
        UserError: The URL cannot be written, or holds a secret.
    """
    try:
        return folder_at(output_address(address))
    except ValueError as error:
        raise UserError(f"shards: {error}") from None


def _retry(
    path: str, final: Folder, console: Console, address: str | None, given: Mapping[str, str]
) -> dict[str, Any]:
    shard_set = ShardSet.open(str(final))
    manifest = shard_set.manifest
    if not manifest.quarantined:
        raise UserError(f"{path}: nothing is in quarantine")
    ledger = Ledger.read(final)
    sources = {**ledger.addresses, **given}
    if not ledger.addresses:
        raise UserError(
            f"{ledger_path(final)}: is missing or belongs to another set, so it is unknown where "
            "the sources are; run 'perceiver preprocess' with the set's configuration first"
        )
    for split, source in sources.items():
        if is_redacted(source):
            raise UserError(
                f"{path}: its sources lie at {source}, whose password or signature is not kept; "
                f"give the whole address: perceiver retry-quarantine {path} data.{split}=URL"
            )
    if any(map(is_redacted, ledger.reading.get("allow", ()))):
        raise UserError(
            f"{path}: data.allow names addresses whose password or signature is not kept; run "
            "'perceiver preprocess' with the set's configuration instead"
        )
    spec = ShardSetSpec(
        # The bad files were accepted when the set was made, so they are accepted again.
        data=data_config(manifest, sources, ledger.reading).model_copy(
            update={"max_bad_fraction": 1.0}
        ),
        seed=manifest.config["seed"],
        identity=manifest.config,
        specs=tuple(manifest.positions.values()),
        final=final,
        address=address,
    )
    uris = shard_set.quarantine_table()["source_uri"]
    return _bring_up_to_date(spec, console, again=uris.cast(pa.binary()).combine_chunks())


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what `preprocess` returned."""
    counts = ", ".join(f"{count} {split}" for split, count in result["counts"].items())
    state = "is there, with all files: skipped" if result["skipped"] else "written"
    classes = f" in {len(result['classes'])} classes" if result["classes"] else ""
    console.say(f"{result['shards']}: {counts}{classes}; {state}")
    console.say(f"digest {result['digest']}")
    bad = result["num_quarantined"]
    if bad:
        console.say(f"{bad} files could not be used and are in quarantine.parquet:")
        for row in result["quarantined"][:10]:
            console.say(f"  {row['source']}: {row['reason']}")
        if bad > 10:
            console.say(f"  … and {bad - 10} more")


@contextmanager
def _alone(final: Folder) -> Iterator[None]:
    """Keep other commands away from the set, and repair what a killed one left beside it."""
    name = f"{final.name}.lock"
    if not isinstance(final, Path):
        with object_lock(final.with_name(name), str(final), patience_seconds=0):
            yield
        return
    with exclusive_lock(final.with_name(name)):
        recover(final)
        remove_temporaries(final.with_name(ledger_path(final).name))
        yield


def _bring_up_to_date(
    spec: ShardSetSpec, console: Console, *, fresh: bool = False, again: pa.Array | None = None
) -> dict[str, Any]:
    options = remote_options(place_of(spec.tasks))
    with TableStore(lambda: ray_session(spec.address), options) as store:
        return _with_store(spec, console, store, fresh=fresh, again=again)


def _with_store(
    spec: ShardSetSpec, console: Console, store: TableStore, *, fresh: bool, again: pa.Array | None
) -> dict[str, Any]:
    base = None if fresh or not _is_there(spec.final) else _open_base(spec, store)
    if base is None:
        source_table = list_sources(spec, store=store)
    else:
        source_table = list_sources(spec, base.ledger.tables, base.manifest.classes, store)
    if base is None:
        return _finish(spec, source_table, None, None, console)
    again = pa.array([], pa.binary()) if again is None else again
    changes = compare(base.ledger, source_table, again, base.quarantine["source_uri"])
    _refuse_other_sources(spec, base, changes)
    if changes or _refused_otherwise(source_table, base, changes):
        console.notice(
            f"{spec.final}: {changes.num_to_decode} sources are new or changed, "
            f"{changes.num_stale} are to be removed"
        )
        return _finish(spec, source_table, base, changes, console)
    problems = check_sizes(base.shard_set)
    if problems:
        raise UserError(
            f"{spec.final}/{problems[0].file}: {problems[0].what} ({len(problems)} problems in "
            "all); make the set again with --fresh"
        )
    remove_leftovers(spec)
    _note_sources(spec, source_table, base.ledger.seconds, base.ledger.tables)
    return _result(spec, 0, base.ledger.seconds, console, skipped=True)


def _is_there(final: Folder) -> bool:
    """Return whether there is a set. A folder without one was refused before, by `recover`."""
    if isinstance(final, Path):
        return final.exists()
    return exists(final / MANIFEST_FILE)


def _open_base(spec: ShardSetSpec, store: TableStore) -> ExistingSet:
    shard_set = ShardSet.open(str(spec.final))
    refuse_other_identity(shard_set.manifest, spec.identity, f"{spec.final}")
    return ExistingSet(shard_set, Ledger.read(spec.final, store), shard_set.quarantine_table())


def _refuse_other_sources(spec: ShardSetSpec, base: ExistingSet, changes: SetChanges) -> None:
    """Refuse to continue if none of the earlier sources is left.

    Some sources may move, but if all have gone, the configuration names other data by mistake.
    """
    before, now = base.ledger.addresses, stored_addresses(spec.data)
    # An address with a new signature is the same source.
    same = _named(before) == _named(now)
    if not before or same or changes.num_unchanged:
        return
    moved = differences(*(flatten({"data": dict(sources)}) for sources in (before, now)))
    raise UserError(
        f"{spec.final} was made from other sources, none of which is left: {moved}. {OTHERWISE}"
    )


def _note_sources(
    spec: ShardSetSpec,
    source_table: SourceTable,
    seconds: float,
    made: Sequence[StoredTable] | None = None,
) -> None:
    """Write down what the set was made from; `made` is the earlier ledger, if that still holds."""
    write_ledger(
        spec.final,
        source_table,
        made=made,
        seconds=seconds,
        addresses=stored_addresses(spec.data),
        reading=stored_reading(spec.data),
    )


def _named(sources: Mapping[str, str]) -> dict[str, str]:
    return {split: without_secrets(source) for split, source in sources.items()}


def _refused_otherwise(source_table: SourceTable, base: ExistingSet, changes: SetChanges) -> bool:
    """Return whether the list of refused sources has changed since the last build."""
    listed = refused_by_decoders(base.quarantine, changes, changes.named)
    before, now = base.quarantine.filter(pc.invert(listed)), refused_rows(source_table)
    order = [(name, "ascending") for name in now.schema.names]
    return not before.sort_by(order).equals(now.sort_by(order))


def _finish(
    spec: ShardSetSpec,
    source_table: SourceTable,
    base: ExistingSet | None,
    changes: SetChanges | None,
    console: Console,
) -> dict[str, Any]:
    started = time.time()
    decoded = build(spec, source_table, base, changes, console)
    seconds = time.time() - started
    _note_sources(spec, source_table, seconds)
    return _result(spec, decoded, seconds, console, skipped=False)


def _result(
    spec: ShardSetSpec, decoded: int, seconds: float, console: Console, *, skipped: bool
) -> dict[str, Any]:
    shard_set = ShardSet.open(str(spec.final))
    added = add_missing_tables(shard_set, spec.specs, console)
    manifest = shard_set.manifest
    shown = shard_set.quarantine_table().slice(0, MAX_ROWS_TOLD)
    return {
        "shards": str(spec.final),
        "digest": manifest.digest,
        "counts": manifest.counts,
        "classes": list(manifest.classes),
        "num_quarantined": manifest.quarantined,
        "quarantined": [
            {"source": row["source_uri"], "reason": row["reason"]} for row in shown.to_pylist()
        ],
        "decoded": decoded,
        "added_positions": added,
        "seconds": seconds,
        "skipped": skipped,
    }
