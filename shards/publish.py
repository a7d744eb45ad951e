"""From a staging folder to a shard set: its manifest seals it, a rename puts it in place."""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.digests import canonical_json, sha256_hex, stream_sha256
from shards.errors import ShardError
from shards.files import AtomicFile, is_temporary, remove_tree, sync_folder
from shards.index import (
    MAX_LISTING_BYTES,
    ShardIndex,
    ShardInfo,
    decode_listing,
    encode_listing,
    index_name,
)
from shards.manifest import LISTING_FILE, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from shards.positions import PositionSpec, position_name
from shards.quarantine import QUARANTINE_FILE, merge_quarantine, quarantine_table
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
    replace: bool = False,
) -> Manifest:
    """Makes the shards in `staging` a shard set at `final`.

    Killed at any moment, it leaves `final` as it was or whole, and the same call finishes the work.
    Only while an older set is replaced is there an instant with neither in place; the older one is
    then beside, whole, and the next call puts it back first.

    Args:
        staging: a folder of its own on the file system of `final`; gone afterwards.
        final: must not exist, unless `replace` is true and it is a shard set.
        numbers: all shards of the plan; each must be committed. Those without samples are left out.
        config: as JSON holds it; only what determines the samples, since it is part of the digest.
        input_digest: names the listing of raw inputs.
        classes: names of the classes that targets index; none where there are no classes.
        positions: the position tables of the set, written before by `write_position_table`.
        quarantine: sources set aside beside those that `write_shard` was given, a
            `quarantine_table`.

    Raises:
        ShardError: a shard or position table is missing, a target has no class, `final` is in the
            way, or the file system refuses.
    """
    recover(final)
    if final.exists() and not replace:
        raise ShardError(f"{final}: holds a shard set already; choose another path or replace it")
    numbers = sorted(numbers)
    manifest = _sealed(staging, canonical_json(config), input_digest)
    if manifest is None:
        manifest = _seal(staging, numbers, config, input_digest, classes, positions, quarantine)
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
    """Undoes or ends what a `publish` that was killed while it replaced `final` left beside it.

    Raises:
        ShardError: `final` exists and is not a shard set, or the file system refuses.
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
    """The manifest of a staging folder that was sealed, of this configuration and input."""
    path = staging / MANIFEST_FILE
    if not path.is_file():
        return None
    data = read_file(staging, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = Manifest.decode(data, str(path))
    same = manifest.config_digest == sha256_hex(config) and manifest.input_digest == input_digest
    return manifest if same else None


def _seal(
    staging: Path,
    numbers: list[int],
    config: dict[str, Any],
    input_digest: str,
    classes: Sequence[str],
    positions: Iterable[PositionSpec],
    quarantine: pa.Table | None,
) -> Manifest:
    census = _Census(classes)
    parts = []
    for number in numbers:
        index = read_index(staging, number)
        if index is None:
            raise ShardError(
                f"{staging}: shard {number} of the plan is not finished; "
                "run 'perceiver preprocess' again to finish it"
            )
        census.add(index)
        if (part := quarantine_part(staging, number)).exists():
            parts.append(part)

    more = quarantine_table([]) if quarantine is None else quarantine
    quarantined = merge_quarantine(staging / QUARANTINE_FILE, parts, more)
    listing = encode_listing(census.infos)
    _write(staging / LISTING_FILE, listing)
    specs = {spec.digest: spec for spec in positions}
    manifest = Manifest(
        config=config,
        config_digest=sha256_hex(canonical_json(config)),
        input_digest=input_digest,
        classes=tuple(classes),
        counts=dict(census.counts),
        class_counts={split: dict(counts) for split, counts in census.class_counts.items()},
        members=tuple(sorted(census.members)),
        quarantined=quarantined,
        positions=specs,
        position_sha256={digest: _position_sha256(staging, digest) for digest in specs},
        shards_sha256=sha256_hex(listing),
        quarantine_sha256=sha256_hex((staging / QUARANTINE_FILE).read_bytes()),
    )
    _write(staging / MANIFEST_FILE, manifest.encode())
    return manifest


class _Census:
    """Counts samples, classes and members over the shards that have any."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self.infos: list[ShardInfo] = []
        self.counts: Counter[str] = Counter()
        self.class_counts: dict[str, Counter[str]] = {}
        self.members: set[str] = set()

    def add(self, index: ShardIndex) -> None:
        if not index.info.samples:
            return
        self.infos.append(index.info)
        self.counts[index.info.split] += index.info.samples
        self.members.update(index.member_names)
        if not self._classes:
            return
        in_split = self.class_counts.setdefault(index.info.split, Counter())
        targets, counts = np.unique(index.targets.drop_null().to_numpy(), return_counts=True)
        for target, count in zip(targets.tolist(), counts.tolist(), strict=True):
            if not 0 <= target < len(self._classes):
                raise ShardError(
                    f"{index.info.name}: target {target} with {len(self._classes)} classes; "
                    "name every class or correct the targets"
                )
            in_split[self._classes[target]] += count


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
    """Removes what a published set does not have: it is all in the manifest's files by now."""
    shutil.rmtree(staging / QUARANTINE_PARTS, ignore_errors=True)
    listing = decode_listing(read_file(staging, LISTING_FILE, MAX_LISTING_BYTES), LISTING_FILE)
    for number in set(numbers).difference(listing["number"].to_pylist()):
        (staging / index_name(number)).unlink(missing_ok=True)  # of a shard without samples
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
