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

from shards.files import AtomicFile, remove_tree
from shards.manifest import Manifest
from shards.positions import PositionSpec, write_position_table
from shards.publish import publish
from shards.quarantine import Quarantined, read_quarantine_table
from shards.rewrite import link_shard, rewrite_shard
from shards.sample import Sample
from shards.shard_set import ShardSet
from shards.writer import QUARANTINE_PARTS, read_committed, write_shard


class Staging(Protocol):
    """A set that is being made. It can be pickled, so that workers write to it, too."""

    def prepare(self) -> None:
        """Keep the shards of an interrupted build only if it was the same build."""

    def is_committed(self, number: int) -> bool:
        """Return whether a shard of this build is complete."""

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
        config: dict[str, Any],
        input_digest: str,
        classes: tuple[str, ...],
        positions: Mapping[PositionSpec, np.ndarray],
        quarantine: pa.Table,
    ) -> Manifest:
        """Make the shards a set, which replaces an older one.

        Args:
            numbers: All shards of the set, those that are kept among them.
            config: The configuration, as a JSON object.
            input_digest: The name of the list of raw inputs.
            classes: The names of the classes.
            positions: The position tables, float32 [tokens, channels].
            quarantine: Further sources that gave no sample.

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

    def is_committed(self, number: int) -> bool:
        return read_committed(self.folder, number) is not None

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
        config: dict[str, Any],
        input_digest: str,
        classes: tuple[str, ...],
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
            classes=classes,
            positions=positions,
            quarantine=quarantine,
            replace=self.final.exists(),
        )
        self._made_by.unlink()
        return manifest

    def remove(self) -> None:
        # The fingerprint goes first. It must not vouch for shards that are partly removed.
        self._made_by.unlink(missing_ok=True)
        remove_tree(self.folder)
