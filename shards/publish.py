"""Turn a staging folder into a shard set: write the manifest, then rename the folder."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.census import Census, ShardFacts
from shards.digests import canonical_json, sha256_hex, stream_sha256
from shards.errors import ShardError
from shards.files import AtomicFile, is_temporary, remove_tree, sync_folder
from shards.index import MAX_SHARD_TABLE_BYTES, decode_shard_table, index_name
from shards.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, SHARD_TABLE_FILE, Manifest
from shards.positions import PositionSpec, position_name
from shards.quarantine import QUARANTINE_FILE, quarantine_table, read_quarantine_table
from shards.set_files import read_file
from shards.writer import QUARANTINE_PARTS, quarantine_part, read_index


def publish(
    staging: Path,
    final: Path,
    *,
    numbers: Iterable[int],
    config: dict[str, Any],
    input_digest: str,
    classes: Sequence[str],
    positions: Iterable[PositionSpec] = (),
    quarantine: pa.Table | None = None,
    census: Census | None = None,
    replace: bool = False,
) -> Manifest:
    """Publish the shards in `staging` as a shard set at `final`.

    If the process is killed, `final` is either unchanged or complete, and the same call finishes
    the work. Only while an older set is replaced is there an instant without a set at `final`. Then
    the older set is complete in a folder next to it, and the next call restores it first.

    Args:
        staging: The folder with the shards, on the file system of `final`. It becomes `final`.
        final: The path of the set. It must not exist, unless `replace` is true and it is a set.
        numbers: All shards of the plan. Each must be committed. Empty shards are left out.
        config: The configuration as a JSON object. It is part of the digest, so it must contain
            only what determines the samples.
        input_digest: The name of the list of raw inputs.
        classes: The names of the classes, which targets index; empty if there are no classes.
        positions: The position tables of the set, already written by `write_position_table`.
        quarantine: A `quarantine_table` of further sources, in addition to those that `write_shard`
            set aside. With a census, all sources that gave no sample.
        census: The shards, counted already; None to read all indexes here.
        replace: Whether to replace an existing set.

    Returns:
        The manifest of the set.

    Raises:
        ShardError: A shard or position table is missing, a target has no class, `final` exists, or
            the file system fails.
    """
    recover(final)
    if final.exists() and not replace:
        raise ShardError(f"{final}: holds a shard set already; choose another path or replace it")
    numbers = sorted(numbers)
    manifest = _sealed(staging, canonical_json(config), input_digest)
    if manifest is None:
        more = quarantine_table([]) if quarantine is None else quarantine
        if census is None:
            census, set_aside = _counted(staging, numbers, classes)
            more = pa.concat_tables([*set_aside, more])
        lost = set(numbers) - census.numbers
        if lost:
            raise ShardError(
                f"{staging}: shard {min(lost)} of the plan is not finished; "
                "run 'perceiver preprocess' again to finish it"
            )
        manifest = _seal(staging, census, config, input_digest, positions, more)
    try:
        _tidy(staging, numbers)
        _move_into_place(staging, final)
    except OSError as error:
        raise ShardError(
            f"{final}: the set in {staging} cannot be moved here ({error.strerror}); "
            "mend that and run the same command again"
        ) from error
    return manifest


def recover(final: Path) -> None:
    """Finish or undo a replacement of `final` by a `publish` that was killed.

    Raises:
        ShardError: `final` exists and is not a shard set, or the file system fails.
    """
    aside = _aside(final)
    if aside.exists():
        if final.exists():
            remove_tree(aside)
        else:
            aside.rename(final)
    if final.exists() and not (final / MANIFEST_FILE).is_file():
        raise ShardError(f"{final}: exists and is not a shard set; choose another path")


def _sealed(staging: Path, config: bytes, input_digest: str) -> Manifest | None:
    """Return the manifest in `staging` if it is for this configuration and input, else None."""
    path = staging / MANIFEST_FILE
    if not path.is_file():
        return None
    data = read_file(staging, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = Manifest.decode(data, str(path))
    same = manifest.config_digest == sha256_hex(config) and manifest.input_digest == input_digest
    return manifest if same else None


def _counted(
    staging: Path, numbers: list[int], classes: Sequence[str]
) -> tuple[Census, list[pa.Table]]:
    """Count the shards that are complete, and return the sources that they set aside."""
    census = Census(classes)
    parts = []
    for number in numbers:
        index = read_index(staging, number)
        if index is not None:
            census.add(ShardFacts.of(index))
        if (part := quarantine_part(staging, number)).exists():
            parts.append(read_quarantine_table(part))
    return census, parts


def _seal(
    staging: Path,
    census: Census,
    config: dict[str, Any],
    input_digest: str,
    positions: Iterable[PositionSpec],
    quarantine: pa.Table,
) -> Manifest:
    sealed = census.seal(
        config=config,
        input_digest=input_digest,
        quarantine=quarantine,
        positions={spec: _position_sha256(staging, spec.digest) for spec in positions},
    )
    _write(staging / QUARANTINE_FILE, sealed.quarantine)
    _write(staging / SHARD_TABLE_FILE, sealed.shard_table)
    _write(staging / MANIFEST_FILE, sealed.manifest.encode())
    return sealed.manifest


def _position_sha256(staging: Path, digest: str) -> str:
    path = staging / position_name(digest)
    try:
        with path.open("rb") as file:
            return stream_sha256(file)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: missing; write the position table before publishing") from error


def _write(path: Path, data: bytes) -> None:
    with AtomicFile(path) as file:
        file.write(data)


def _tidy(staging: Path, numbers: list[int]) -> None:
    """Remove the files that only a staging folder has; the set's files contain all of it now."""
    shutil.rmtree(staging / QUARANTINE_PARTS, ignore_errors=True)
    shard_table = decode_shard_table(
        read_file(staging, SHARD_TABLE_FILE, MAX_SHARD_TABLE_BYTES), SHARD_TABLE_FILE
    )
    for number in set(numbers).difference(shard_table["number"].to_pylist()):
        (staging / index_name(number)).unlink(missing_ok=True)  # the index of an empty shard
    for path in staging.rglob(".*"):
        if is_temporary(path.name):
            path.unlink()


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _move_into_place(staging: Path, final: Path) -> None:
    aside = _aside(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        final.rename(aside)
    try:
        staging.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)
