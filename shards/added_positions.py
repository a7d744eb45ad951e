"""Position tables that were added to a finished set, for models with other Fourier features.

    positions.json              the tables, with the sha256 of each file
    positions/DIGEST.npy        as those that the set was made with

A table follows from its specification alone, and determines no sample. So adding one changes
neither the manifest nor the digest of the set, and reads no shard.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from shards.digests import canonical_json, sha256_hex
from shards.errors import ShardError
from shards.files import AtomicFile
from shards.location import Location
from shards.names import BY_CONTENT, BY_NUMBER, FileNames
from shards.object_store import ObjectStore
from shards.plain import is_sha256
from shards.positions import PositionSpec, encode_position_table

ADDED_FILE = "positions.json"
_MAX_BYTES = 16 << 20
_ATTEMPTS = 8


def read_added(location: Location) -> dict[PositionSpec, str]:
    """Return the tables that were added to a set, with the sha256 of each file.

    Raises:
        ShardError: The list of them is damaged.
    """
    return _decode(_read(location), f"{location}/{ADDED_FILE}")


def add_positions(location: Location, tables: Mapping[PositionSpec, np.ndarray]) -> None:
    """Add position tables to a finished set. Those that were added before stay.

    Args:
        location: The location of the set.
        tables: The tables, float32 [tokens, channels].

    Raises:
        ShardError: A table is not that of its specification, or the storage fails.
    """
    names = BY_NUMBER if location.folder else BY_CONTENT
    sha256s = {}
    for spec, table in tables.items():
        data = encode_position_table(spec, table, str(location))
        sha256s[spec] = sha256_hex(data)
        _write(location, names.position_table(spec.digest, sha256s[spec]), data)
    for _ in range(_ATTEMPTS):
        before = _read(location)
        added = _decode(before, f"{location}/{ADDED_FILE}") | sha256s
        if _exchange(location, before, _encode(added)):
            return
    raise ShardError(
        f"{location}/{ADDED_FILE}: other commands change it all the time; run this one again"
    )


def files_of_added(added: Mapping[PositionSpec, str], names: FileNames) -> dict[str, str]:
    """Return the path of each added table within the set, with its sha256."""
    return {names.position_table(spec.digest, sha256): sha256 for spec, sha256 in added.items()}


def _read(location: Location) -> bytes | None:
    try:
        return location.read(ADDED_FILE, _MAX_BYTES)
    except FileNotFoundError:
        return None


def _write(location: Location, name: str, data: bytes) -> None:
    if location.folder is not None:
        with AtomicFile(location.folder / name) as file:
            file.write(data)
    else:
        ObjectStore(str(location)).write(name, data)


def _exchange(location: Location, before: bytes | None, data: bytes) -> bool:
    if location.folder is None:
        return ObjectStore(str(location)).exchange(ADDED_FILE, before, data)
    _write(location, ADDED_FILE, data)  # the caller holds the lock of the set
    return True


def _encode(added: Mapping[PositionSpec, str]) -> bytes:
    return canonical_json(
        {spec.digest: {"spec": spec.to_dict(), "sha256": sha256} for spec, sha256 in added.items()}
    )


def _decode(data: bytes | None, where: str) -> dict[PositionSpec, str]:
    if data is None:
        return {}
    try:
        tables: Any = json.loads(data)
        added = {}
        for digest, fields in tables.items():
            spec = PositionSpec.from_dict(fields["spec"])
            if spec.digest != digest or not is_sha256(fields["sha256"]):
                raise ValueError(f"the table {str(digest)[:80]!r} contradicts itself")
            added[spec] = fields["sha256"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(
            f"{where}: damaged ({' '.join(str(error).split())[:200]}); remove it, and run "
            "'perceiver preprocess' again"
        ) from error
    return added
