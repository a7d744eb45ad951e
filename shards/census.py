"""What the shards of a set say together: its counts, its table of shards, and its manifest."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

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


@dataclass(frozen=True)
class ShardFacts:
    """What a set needs to know of a shard: some hundred bytes, whatever its samples.

    Attributes:
        info: The facts about the shard.
        class_counts: The number of samples of each target.
        members: The distinct names of members.
    """

    info: ShardInfo
    class_counts: Mapping[int, int]
    members: tuple[str, ...]

    @classmethod
    def of(cls, index: ShardIndex) -> Self:
        """Count the samples of a shard."""
        targets, counts = np.unique(index.targets.drop_null().to_numpy(), return_counts=True)
        pairs = zip(targets.tolist(), counts.tolist(), strict=True)
        return cls(index.info, dict(pairs), tuple(index.member_names))

    def to_json(self) -> str:
        """Return the facts as a text, for another process."""
        return json.dumps([asdict(self.info), list(self.class_counts.items()), self.members])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the text of `to_json`."""
        info, class_counts, members = json.loads(text)
        return cls(ShardInfo(**info), dict(class_counts), tuple(members))


class Census:
    """Counts of samples, classes and members over the shards of a set.

    Args:
        classes: The names of the classes, which targets index; empty if there are no classes.

    Attributes:
        numbers: The numbers of the shards that were counted.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self.numbers: set[int] = set()
        self._infos: list[ShardInfo] = []
        self._counts: Counter[str] = Counter()
        self._class_counts: dict[str, Counter[str]] = {}
        self._members: set[str] = set()

    def add(self, facts: ShardFacts) -> None:
        """Count the samples of a shard. An empty one is left out of the set.

        Raises:
            ShardError: A target has no class.
        """
        info = facts.info
        self.numbers.add(info.number)
        if not info.samples:
            return
        self._infos.append(info)
        self._counts[info.split] += info.samples
        self._members.update(facts.members)
        if not self._classes:
            return
        in_split = self._class_counts.setdefault(info.split, Counter())
        for target, count in facts.class_counts.items():
            if not 0 <= target < len(self._classes):
                raise ShardError(
                    f"{info.name}: target {target} with {len(self._classes)} classes; "
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
        infos = sorted(self._infos, key=lambda info: info.number)
        shard_table = encode_shard_table(infos)
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
