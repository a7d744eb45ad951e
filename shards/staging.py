"""Where a shard set is made before it is published: in a folder, or in object storage.

Shards are made by many processes on many machines. Each is complete or not there. What is complete
survives the processes, so an interrupted build continues.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from shards.census import Census, ShardFacts
from shards.errors import ShardError
from shards.files import AtomicFile, remove_tree
from shards.manifest import Manifest
from shards.positions import PositionSpec, write_position_table
from shards.publish import publish
from shards.quarantine import Quarantined, read_quarantine_table
from shards.rewrite import link_shard, rewrite_shard
from shards.sample import Sample
from shards.shard_set import ShardSet
from shards.writer import QUARANTINE_PARTS, read_index, write_shard


class Staging(Protocol):
    """A set that is being made. It can be pickled, so that workers write to it, too."""

    def prepare(self) -> None:
        """Keep the shards of an interrupted build only if it was the same build."""

    def facts(self, number: int) -> ShardFacts | None:
        """Return what the set needs to know of a shard of this build; None unless it is complete.

        The shard's index is read, so this is work for a task.
        """

    def facts_kept(self, base: str, number: int) -> ShardFacts:
        """Return the same of a shard that is kept from an older set at an address.

        Raises:
            ShardError: The shard is missing or damaged.
        """

    def write(self, number: int, split: str, samples: Iterable[Sample | Quarantined]) -> None:
        """Write a shard, as `write_shard`."""

    def rewrite(self, base: str, number: int, without: Collection[str]) -> None:
        """Write a shard of an older set again without some sources, as `rewrite_shard`.

        Args:
            base: The address of the older set.
            number: The number of the shard in both sets.
            without: The URIs of the sources to leave out.
        """

    def keep(self, base: ShardSet, numbers: Collection[int]) -> None:
        """Take over shards of the older set as they are."""

    def quarantined(self) -> list[pa.Table]:
        """Return the sources that gave no sample in this build, as tables of a quarantine."""

    def has_shards(self) -> bool:
        """Return whether there is a complete shard with samples."""

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
        """Make the shards a set, which replaces an older one.

        Args:
            numbers: All shards of the set, those that are kept among them.
            census: The same shards, counted.
            config: The configuration, as a JSON object.
            input_digest: The name of the list of raw inputs.
            positions: The position tables, float32 [tokens, channels].
            quarantine: All sources that gave no sample.

        Raises:
            ShardError: A shard is missing, a target has no class, the storage fails, or another
                command has replaced the set in the meantime.
        """

    def remove(self) -> None:
        """Remove what the build has left, but not a set."""


@dataclass(frozen=True)
class FolderStaging:
    """A set that is made in a folder beside its place, on the same file system.

    Attributes:
        folder: The folder.
        final: The folder of the set.
        fingerprint: The name of the build. It lies beside the folder, which becomes the set.
    """

    folder: Path
    final: Path
    fingerprint: str = ""

    @property
    def _made_by(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.made_by")

    def prepare(self) -> None:
        known = self._made_by.read_text("utf-8") if self._made_by.is_file() else None
        if known != self.fingerprint:
            self._made_by.unlink(missing_ok=True)
            remove_tree(self.folder)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with AtomicFile(self._made_by) as file:
                file.write(self.fingerprint.encode())
        self.folder.mkdir(parents=True, exist_ok=True)

    def facts(self, number: int) -> ShardFacts | None:
        index = read_index(self.folder, number)
        return None if index is None else ShardFacts.of(index)

    def facts_kept(self, base: str, number: int) -> ShardFacts:
        facts = self.facts(number)
        if facts is None:
            raise ShardError(
                f"{base}: shard {number} is damaged; run 'perceiver verify', and make the set "
                "again with --fresh"
            )
        return facts

    def write(self, number: int, split: str, samples: Iterable[Sample | Quarantined]) -> None:
        write_shard(self.folder, number, split, samples)

    def rewrite(self, base: str, number: int, without: Collection[str]) -> None:
        rewrite_shard(Path(base), self.folder, number, without)

    def keep(self, base: ShardSet, numbers: Collection[int]) -> None:
        assert base.location.folder is not None
        for number in numbers:
            link_shard(base.location.folder, self.folder, number)

    def quarantined(self) -> list[pa.Table]:
        parts = sorted((self.folder / QUARANTINE_PARTS).glob("*.parquet"))
        return list(map(read_quarantine_table, parts))

    def has_shards(self) -> bool:
        return any(self.folder.glob("*.tar"))

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
        for spec, table in positions.items():
            write_position_table(self.folder, spec, table)
        manifest = publish(
            self.folder,
            self.final,
            numbers=numbers,
            config=config,
            input_digest=input_digest,
            classes=(),
            positions=positions,
            quarantine=quarantine,
            census=census,
            replace=self.final.exists(),
        )
        self._made_by.unlink()
        return manifest

    def remove(self) -> None:
        # The fingerprint goes first. It must not vouch for shards that are partly removed.
        self._made_by.unlink(missing_ok=True)
        remove_tree(self.folder)
