"""The manifest: small for a set of any size, and written last. A set without one is unfinished."""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

from shards.digests import canonical_json, sha256_hex
from shards.errors import ShardError
from shards.manifest_check import check_manifest
from shards.positions import PositionSpec

MANIFEST_FILE = "manifest.json"
SHARD_TABLE_FILE = "shards.parquet"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 256 << 20
"""The largest manifest. It is read whole, and the vocabulary of a table may be large."""

_MAX_QUOTED = 200


@dataclass(frozen=True)
class Manifest:
    """The description of a shard set, with the sha256 of the files that describe the rest.

    Attributes:
        config: The configuration that the caller made the set with, as a JSON object.
        config_digest: The sha256 of the canonical JSON of `config`.
        input_digest: The caller's name for the list of raw inputs.
        classes: The names of the classes; a sample's target is an index into them.
        counts: The samples of each split.
        class_counts: Maps a split and a class name to the samples of this class, if there are any.
        members: The distinct names of members, sorted.
        quarantined: The rows of `quarantine.parquet`.
        positions: The position tables by digest.
        position_sha256: The sha256 of each position table's file, by digest.
        shards_sha256: The sha256 of `shards.parquet`, which holds the sha256 of tars and indexes.
        quarantine_sha256: The sha256 of `quarantine.parquet`.
        format_version: The version of the files' layout.
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
        """The name of the set: the sha256 of its `manifest.json`, 64 hexadecimal digits."""
        return sha256_hex(self.encode())

    def encode(self) -> bytes:
        """Encode `manifest.json`: canonical JSON with a checksum over the other fields."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["positions"] = {digest: spec.to_dict() for digest, spec in self.positions.items()}
        return canonical_json(content | {"checksum": sha256_hex(canonical_json(content))})

    @classmethod
    def decode(cls, data: bytes, where: str) -> Self:
        """Decode a `manifest.json`.

        Args:
            data: The whole file.
            where: The name of the file in errors.

        Raises:
            ShardError: The bytes are not JSON, have another format version or other fields, or were
                changed after they were written.
        """
        try:
            content = json.loads(data)
        except ValueError as error:
            raise _damaged(where, f"not JSON ({error})") from error
        except RecursionError as error:
            raise _damaged(where, "nested too deeply") from error
        if not isinstance(content, dict) or "format_version" not in content:
            raise _damaged(where, "not the manifest of a shard set")
        if content["format_version"] != FORMAT_VERSION:
            raise ShardError(
                f"{where}: format version {repr(content['format_version'])[:_MAX_QUOTED]} instead "
                f"of {FORMAT_VERSION}; read it with the program that wrote it or run 'perceiver "
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
            raise _damaged(where, f"it has an invalid value ({error})") from error
        if not same:
            raise _damaged(where, "its checksum differs: it was changed since it was written")
        check_manifest(manifest, where)
        return manifest


def _damaged(where: str, what: str) -> ShardError:
    return ShardError(f"{where}: {what}; restore it or run 'perceiver preprocess' again")
