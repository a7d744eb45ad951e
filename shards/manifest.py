"""The manifest: small whatever the set's size, and written last, so that it makes the set."""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

from shards.digests import canonical_json, sha256_hex
from shards.errors import ShardError
from shards.manifest_check import check_manifest
from shards.positions import PositionSpec

MANIFEST_FILE = "manifest.json"
LISTING_FILE = "shards.parquet"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 256 << 20
"""A table's vocabulary may be large, and a manifest is read whole."""

_MAX_QUOTED = 200


@dataclass(frozen=True)
class Manifest:
    """What a shard set is and the sha256 of the files that say the rest.

    Attributes:
        config: what the caller made the set with, as JSON holds it.
        config_digest: sha256 of its canonical JSON.
        input_digest: names the listing of raw inputs; the caller's.
        classes: their names; a sample's target indexes them.
        counts: samples of each split.
        class_counts: samples of each class that occurs, by split and class name.
        members: the distinct names of members, sorted.
        quarantined: rows of `quarantine.parquet`.
        positions: the position tables, by digest.
        position_sha256: of their files, by digest.
        shards_sha256: of `shards.parquet`, which has those of all tars and indexes.
        quarantine_sha256: of `quarantine.parquet`.
        format_version: of the files' layout.
    """

    config: dict[str, Any]
    config_digest: str
    input_digest: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    class_counts: dict[str, dict[str, int]]
    members: tuple[str, ...]
    quarantined: int
    positions: dict[str, PositionSpec]
    position_sha256: dict[str, str]
    shards_sha256: str
    quarantine_sha256: str
    format_version: int = FORMAT_VERSION

    @cached_property
    def digest(self) -> str:
        """The set's name: sha256 of the bytes of its `manifest.json`, 64 hexadecimal digits."""
        return sha256_hex(self.encode())

    def encode(self) -> bytes:
        """The bytes of `manifest.json`: canonical JSON with a checksum of the other fields."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["positions"] = {digest: spec.to_dict() for digest, spec in self.positions.items()}
        return canonical_json(content | {"checksum": sha256_hex(canonical_json(content))})

    @classmethod
    def decode(cls, data: bytes, where: str) -> Self:
        """Reads the bytes of a `manifest.json`; `where` names it in errors.

        Raises:
            ShardError: not JSON, of another format version, without a field, or changed since it
                was written.
        """
        try:
            content = json.loads(data)
        except ValueError as error:
            raise _damaged(where, f"not JSON ({error})") from error
        except RecursionError as error:
            raise _damaged(where, "nested too deeply") from error
        if not isinstance(content, dict) or "format_version" not in content:
            raise _damaged(where, "no manifest of a shard set")
        if content["format_version"] != FORMAT_VERSION:
            raise ShardError(
                f"{where}: format version {repr(content['format_version'])[:_MAX_QUOTED]} and not "
                f"{FORMAT_VERSION}; read it with the program that wrote it or run 'perceiver "
                "preprocess' again"
            )
        content.pop("checksum", None)
        names = {field.name for field in fields(cls)}
        if content.keys() != names:
            odd = ", ".join(sorted(content.keys() ^ names))[:_MAX_QUOTED]
            raise _damaged(where, f"missing or unknown fields: {odd}")
        if type(content["format_version"]) is not int or not all(
            isinstance(content[name], list) for name in ("classes", "members")
        ):
            raise _damaged(where, "a field has another type")
        try:
            manifest = cls(
                **content
                | {
                    "classes": tuple(content["classes"]),
                    "members": tuple(content["members"]),
                    "positions": {
                        digest: PositionSpec.from_dict(spec)
                        for digest, spec in content["positions"].items()
                    },
                }
            )
        except (TypeError, AttributeError, ShardError) as error:
            raise _damaged(where, f"a field has another type ({error})") from error
        try:
            same = manifest.encode() == data
        except (ValueError, TypeError, RecursionError) as error:
            raise _damaged(where, f"it holds what no manifest does ({error})") from error
        if not same:
            raise _damaged(where, "its checksum differs: it was changed since it was written")
        check_manifest(manifest, where)
        return manifest


def _damaged(where: str, what: str) -> ShardError:
    return ShardError(f"{where}: {what}; restore it or run 'perceiver preprocess' again")
