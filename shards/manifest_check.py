"""Check that a manifest's fields are valid and agree with each other."""

from collections.abc import Iterator
from typing import Any

from shards.digests import canonical_json, sha256_hex
from shards.errors import ShardError
from shards.plain import is_count, is_member, is_name, is_printable, is_sha256

MAX_CLASS_NAME = 10_000
"""The longest name of a class, in characters."""

_MAX_INPUT_DIGEST = 128


def check_manifest(manifest: Any, where: str) -> None:
    """Reject a manifest with a field of a wrong type or range, or fields that contradict.

    Args:
        manifest: The `Manifest`.
        where: The name of its file in errors.

    Raises:
        ShardError: A field is invalid; the message names the first one.
    """
    for what in _faults(manifest):
        raise ShardError(f"{where}: {what}; do not use this set, or make it again")


def _faults(manifest: Any) -> Iterator[str]:
    yield from _digest_faults(manifest)
    yield from _count_faults(manifest)
    if not _all_distinct(manifest.members, is_member) or list(manifest.members) != sorted(
        manifest.members
    ):
        yield "members is not a sorted list of distinct names of members"
    if manifest.positions.keys() != manifest.position_sha256.keys():
        yield "positions and position_sha256 name different tables"
    for digest, spec in manifest.positions.items():
        if spec.digest != digest:
            yield f"positions: {digest!r} is not the digest of its table's description"


def _digest_faults(manifest: Any) -> Iterator[str]:
    for name in ("config_digest", "shards_sha256", "quarantine_sha256"):
        if not is_sha256(getattr(manifest, name)):
            yield f"{name} is not 64 hexadecimal digits"
    if not isinstance(manifest.config, dict):
        yield "config is not an object"
    elif sha256_hex(canonical_json(manifest.config)) != manifest.config_digest:
        yield "config_digest is not the digest of config"
    digest = manifest.input_digest
    if not is_printable(digest) or len(digest) > _MAX_INPUT_DIGEST:
        yield "input_digest is not a digest"
    if not _has_items(manifest.position_sha256, is_sha256, is_sha256):
        yield "position_sha256 does not map digests to digests"


def _count_faults(manifest: Any) -> Iterator[str]:
    if not _all_distinct(manifest.classes, _is_class_name):
        yield "classes are not distinct names without control characters"
        return
    if not is_count(manifest.quarantined):
        yield "quarantined is not a number of sources"
    counts = manifest.counts
    if not _has_items(counts, is_name, is_count) or not is_count(sum(counts.values())):
        yield "counts does not map names of splits to numbers of samples"
        return
    if not isinstance(manifest.class_counts, dict) or not manifest.class_counts.keys() <= (
        counts.keys()
    ):
        yield "class_counts names a split that counts lacks"
        return
    classes = frozenset(manifest.classes)
    for split, of_class in manifest.class_counts.items():
        if not _has_items(of_class, classes.__contains__, is_count):
            yield f"class_counts of {split!r} does not map classes to numbers of samples"
        elif sum(of_class.values()) > counts[split]:
            yield f"class_counts of {split!r} has more samples than counts"


def _has_items(value: Any, is_key: Any, is_value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_key(key) and is_value(item) for key, item in value.items()
    )


def _all_distinct(values: Any, is_value: Any) -> bool:
    return all(map(is_value, values)) and len(set(values)) == len(values)


def _is_class_name(value: Any) -> bool:
    return is_printable(value) and len(value) <= MAX_CLASS_NAME
