"""Make a shard set in object storage, from many machines and without a shared disk.

    manifest.json                         the commit, written last
    shard-00012-9ac4….tar                 under its final name from the start
    index/00012-1d5b….parquet
    building/BUILD/00012.1d5b…            shard 12 is complete, and its index has this sha256
    building/BUILD/quarantine/00012.parquet

Names carry digests (`shards.names`), so no object is overwritten, and the older set stays whole
until the manifest is exchanged. What no manifest needs is removed afterwards.
"""

import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.added_positions import files_of_added, read_added
from shards.census import Census, ShardFacts
from shards.digests import sha256_hex
from shards.errors import ShardError
from shards.index import MAX_INDEX_BYTES, ShardIndex, ShardInfo, shard_name
from shards.index_cache import read_index
from shards.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from shards.names import BY_CONTENT
from shards.object_store import ObjectStore
from shards.parallel import in_order
from shards.positions import PositionSpec, encode_position_table
from shards.quarantine import (
    MAX_QUARANTINE_BYTES,
    Quarantined,
    decode_quarantine,
    encode_quarantine,
    quarantine_table,
)
from shards.rewrite import samples_without
from shards.sample import Sample
from shards.shard_set import ShardSet
from shards.writer import fill_shard

BUILDING = "building"
REMOVED_AT_ONCE = 1000
_RECORD = re.compile(r"(\d{5,})\.([0-9a-f]{64})")
_PART = re.compile(r"quarantine/\d{5,}\.parquet")
_DIGITS = "-[0-9a-f]{16}"
_OURS = re.compile(
    rf"{BUILDING}/.*|(shards|quarantine)({_DIGITS})?\.parquet|shard-\d{{5,}}({_DIGITS})?\.tar|"
    rf"index/\d{{5,}}({_DIGITS})?\.parquet|positions/[0-9a-f]{{64}}({_DIGITS})?\.npy"
)
"""The names of objects that a set may leave. Others in its folder are not ours to remove."""


@dataclass(frozen=True)
class ObjectStaging:
    """A set that is made at an fsspec URL.

    Attributes:
        url: The URL of the set.
        fingerprint: The name of the build. Complete shards count only for the same one.
        before: The content of the manifest when the build began; None without one.
    """

    url: str
    fingerprint: str
    before: bytes | None = None

    def __reduce__(self) -> tuple:
        return ObjectStaging, (self.url, self.fingerprint)  # workers only write shards

    def prepare(self) -> None:
        store = self._store
        other = [name for name in store.sizes(BUILDING) if not name.startswith(f"{self._build}/")]
        _remove(store, other)

    def facts(self, number: int) -> ShardFacts | None:
        store, start = self._store, f"{self._build}/"
        names = store.matching(f"{start}{number:05d}.*")
        found = [_RECORD.fullmatch(name.removeprefix(start)) for name in names]
        sha256s = [each[2] for each in found if each]
        return ShardFacts.of(_read_committed(store, number, sha256s[0])) if sha256s else None

    def facts_kept(self, base: str, number: int) -> ShardFacts:
        listed = _rows(_opened(base, self.fingerprint), [number])[0]
        return ShardFacts.of(read_index(self._store, BY_CONTENT, listed, 0))

    def write(self, number: int, split: str, samples: Iterable[Sample | Quarantined]) -> None:
        store = self._store
        where = f"{self.url}/{shard_name(number)}"
        try:
            with tempfile.NamedTemporaryFile(prefix="perceiver-shard-") as file:
                filled = fill_shard(file, where, number, split, samples)
                file.flush()
                if filled.info.samples:
                    store.upload(Path(file.name), BY_CONTENT.tar(filled.info))
        except OSError as error:
            raise ShardError(
                f"{tempfile.gettempdir()}: a shard cannot be written here before it is sent "
                f"({error.strerror}); free space, or name another folder in TMPDIR"
            ) from error
        if filled.quarantined:
            data = encode_quarantine([quarantine_table(filled.quarantined)])
            store.write(f"{self._build}/quarantine/{number:05d}.parquet", data)
        store.write(BY_CONTENT.index(filled.info), filled.index)
        store.write(f"{self._build}/{number:05d}.{filled.info.index_sha256}", b"")

    def rewrite(self, base: str, number: int, without: Collection[str]) -> None:
        shard_set = _opened(base, self.fingerprint)
        listed = _rows(shard_set, [number])[0]
        index = read_index(shard_set.location, shard_set.names, listed, 0)
        tar = shard_set.names.tar(listed)
        with shard_set.location.open(tar) as file:
            samples = samples_without(file, f"{base}/{tar}", index, frozenset(without))
            self.write(number, listed.split, samples)

    def keep(self, base: ShardSet, numbers: Collection[int]) -> None:
        kept = _rows(base, numbers)
        if base.names == BY_CONTENT:
            return  # the objects are there, under the same names
        store = self._store

        def copy(shard: ShardInfo) -> None:
            pairs = zip(base.names.of_shard(shard), BY_CONTENT.of_shard(shard), strict=True)
            for (source, _), (target, _) in pairs:
                store.copy(source, target)

        for _ in in_order(copy, kept):
            pass

    def quarantined(self) -> list[pa.Table]:
        store, start = self._store, f"{self._build}/"
        names = sorted(
            name for name in store.sizes(self._build) if _PART.fullmatch(name.removeprefix(start))
        )

        def read(name: str) -> pa.Table:
            return decode_quarantine(store.read(name, MAX_QUARANTINE_BYTES), f"{store}/{name}")

        return list(in_order(read, names))

    def has_shards(self) -> bool:
        return bool(self._records())

    def publish(
        self,
        *,
        numbers: Iterable[int],
        census: Census,
        config: dict[str, Any],
        input_digest: str,
        positions: Mapping[PositionSpec, np.ndarray],
        quarantine: pa.Table,
    ) -> Manifest:
        store = self._store
        if lost := set(numbers) - census.numbers:
            raise ShardError(
                f"{self.url}: shard {min(lost)} of the plan is not finished; run 'perceiver "
                "preprocess' again to finish it"
            )
        digests = {}
        for spec, table in positions.items():
            data = encode_position_table(spec, table, self.url)
            digests[spec] = sha256_hex(data)
            store.write(BY_CONTENT.position_table(spec.digest, digests[spec]), data)
        sealed = census.seal(
            config=config,
            input_digest=input_digest,
            quarantine=quarantine,
            positions=digests,
        )
        manifest = sealed.manifest
        store.write(BY_CONTENT.quarantine(manifest), sealed.quarantine)
        store.write(BY_CONTENT.shard_table(manifest), sealed.shard_table)
        if not store.exchange(MANIFEST_FILE, self.before, manifest.encode()):
            raise ShardError(
                f"{self.url}: another command has made or replaced this set in the meantime, and "
                "its set stays; run the same command again"
            )
        sweep(self.url)
        return manifest

    def remove(self) -> None:
        if self.before is None:
            _remove(self._store, filter(_OURS.fullmatch, self._store.sizes()))
        else:
            sweep(self.url)

    @property
    def _build(self) -> str:
        return f"{BUILDING}/{self.fingerprint[:32]}"

    @cached_property
    def _store(self) -> ObjectStore:
        return ObjectStore(self.url)

    def _records(self) -> dict[int, str]:
        """Return the sha256 of the index of each complete shard, by its number."""
        start = f"{self._build}/"
        found = map(
            _RECORD.fullmatch, (name.removeprefix(start) for name in self._store.sizes(self._build))
        )
        return {int(each[1]): each[2] for each in found if each}


def read_manifest(url: str) -> bytes | None:
    """Return the content of the manifest of the set at a URL; None if there is no set."""
    try:
        return ObjectStore(url).read(MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None


def sweep(url: str) -> None:
    """Remove the objects of older sets and builds at a URL. No build may be going on there.

    Raises:
        ShardError: The storage fails.
    """
    store = ObjectStore(url)
    shard_set = ShardSet.open(store)
    names, manifest = shard_set.names, shard_set.manifest
    needed = {name for name, _ in names.of_manifest(manifest)}
    needed.update(files_of_added(read_added(store), names))
    for shard in shard_set.rows():
        needed.update(name for name, _ in names.of_shard(shard))
    _remove(store, (n for n in store.sizes() if _OURS.fullmatch(n) and n not in needed))


def _remove(store: ObjectStore, names: Iterable[str]) -> None:
    left = iter(names)
    while some := list(islice(left, REMOVED_AT_ONCE)):
        store.remove(some)


@lru_cache(maxsize=1)
def _opened(url: str, build: str) -> ShardSet:
    """Open the set that a build replaces. A worker may have seen older sets there."""
    return ShardSet.open(ObjectStore(url))


def _rows(shard_set: ShardSet, numbers: Collection[int]) -> list[ShardInfo]:
    wanted, table = set(numbers), shard_set.shard_table
    rows = table.filter(pc.is_in(table["number"], value_set=pa.array(sorted(wanted), pa.int64())))
    found = [ShardInfo(**row) for row in rows.to_pylist()]
    if len(found) < len(wanted):
        lost = min(wanted.difference(row.number for row in found))
        raise ShardError(f"{shard_set.location}: has no shard {lost}; run 'perceiver verify' there")
    return found


def _read_committed(store: ObjectStore, number: int, sha256: str) -> ShardIndex:
    name = BY_CONTENT.index_of(number, sha256)
    where = f"{store}/{name}"
    try:
        data = store.read(name, MAX_INDEX_BYTES)
    except FileNotFoundError as error:
        raise _lost(where, "is missing") from error
    if sha256_hex(data) != sha256:
        raise _lost(where, "has another sha256 than when it was written")
    index = ShardIndex.decode(data, where)
    tar = BY_CONTENT.tar(index.info)
    if index.info.samples and store.sizes(tar).get(tar) != index.info.bytes:
        raise _lost(f"{store}/{tar}", "is missing or has another size")
    return index


def _lost(where: str, what: str) -> ShardError:
    return ShardError(f"{where}: {what}; run 'perceiver preprocess' again with --fresh")
