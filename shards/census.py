"""What the shards of a set say together: its counts, its table of shards, and its manifest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shards.digests import canonical_json, sha256_hex
from shards.errors import ShardError
from shards.index import ShardIndex, ShardInfo, encode_shard_table
from shards.manifest import Manifest
from shards.positions import PositionSpec
from shards.quarantine import encode_quarantine


@dataclass(frozen=True)
class Sealed:
    """The files of a set that describe its shards.

    Attributes:
        manifest: The manifest.
        shard_table: The bytes of the table of shards.
        quarantine: The bytes of the quarantine.
    """

    manifest: Manifest
    shard_table: bytes
    quarantine: bytes


class Census:
    """Counts of samples, classes and members over the shards that are not empty.

    Args:
        classes: The names of the classes, which targets index; empty if there are no classes.

    Attributes:
        infos: The facts about the shards, in the order in which they were added.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self.infos: list[ShardInfo] = []
        self._counts: Counter[str] = Counter()
        self._class_counts: dict[str, Counter[str]] = {}
        self._members: set[str] = set()

    def add(self, index: ShardIndex) -> None:
        """Count the samples of a shard. An empty one is left out.

        Raises:
            ShardError: A target has no class.
        """
        if not index.info.samples:
            return
        self.infos.append(index.info)
        self._counts[index.info.split] += index.info.samples
        self._members.update(index.member_names)
        if not self._classes:
            return
        in_split = self._class_counts.setdefault(index.info.split, Counter())
        targets, counts = np.unique(index.targets.drop_null().to_numpy(), return_counts=True)
        for target, count in zip(targets.tolist(), counts.tolist(), strict=True):
            if not 0 <= target < len(self._classes):
                raise ShardError(
                    f"{index.info.name}: target {target} with {len(self._classes)} classes; "
                    "name every class or correct the targets"
                )
            in_split[self._classes[target]] += count

    def seal(
        self,
        *,
        config: dict[str, Any],
        input_digest: str,
        quarantine: pa.Table,
        positions: Mapping[PositionSpec, str],
    ) -> Sealed:
        """Return the manifest of the set, and the files that it names.

        Args:
            config: The configuration as a JSON object.
            input_digest: The name of the list of raw inputs.
            quarantine: All sources that gave no sample, as a `quarantine_table`.
            positions: The sha256 of the file of each position table.
        """
        shard_table = encode_shard_table(self.infos)
        set_aside = encode_quarantine([quarantine])
        classes = self._class_counts
        manifest = Manifest(
            config=config,
            config_digest=sha256_hex(canonical_json(config)),
            input_digest=input_digest,
            classes=tuple(self._classes),
            counts=dict(self._counts),
            class_counts={split: dict(counts) for split, counts in classes.items()},
            members=tuple(sorted(self._members)),
            quarantined=quarantine.num_rows,
            positions={spec.digest: spec for spec in positions},
            position_sha256={spec.digest: sha256 for spec, sha256 in positions.items()},
            shards_sha256=sha256_hex(shard_table),
            quarantine_sha256=sha256_hex(set_aside),
        )
        return Sealed(manifest, shard_table, set_aside)
