"""One task of preprocessing: read a shard's sources, decode them, write the shard whole.

Runs in Ray's workers, so it imports neither torch nor Ray.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.media.errors import MediaError, short_trace
from pipeline.media.members import FUNCTION
from pipeline.media.sandbox import Sandbox
from pipeline.media.sandbox_child import Part as Content
from pipeline.sources import Part, SourceRow, part_file, read_plan
from shards import (
    Quarantined,
    Sample,
    ShardError,
    read_committed,
    rewrite_shard,
    write_shard,
)

MAX_FILE_BYTES = 2 * 1024**3
READ_ATTEMPTS = 4
READ_PAUSE_SECONDS = 0.5

_sandboxes: dict[str, Sandbox] = {}
"""One for each worker process and configuration; its child outlives a task."""


@dataclass(frozen=True)
class ShardTask:
    """Makes the shards whose jobs come in a batch; for ``Dataset.map_batches``.

    Job N below ``num_new`` writes the shard of the plan's row group N; those above take shards over
    from ``base`` without their stale sources.

    Attributes:
        plan: Parquet file whose row group N lists the sources of one shard.
        staging: folder that takes the shards.
        roots: each split's folder or URL.
        media: settings of :func:`pipeline.media.members.make_members`.
        limits: ``seconds`` for each sample and ``memory_bytes`` of the decoder.
        num_new: row groups of the plan.
        first_number: of the plan's first shard.
        base: folder of the set whose shards are taken over, or None.
        stale: Parquet file of uri and shard of its sources that are dropped.
        rewritten: int64 numbers of the shards that have such sources.
    """

    plan: str
    staging: str
    roots: dict[str, str]
    media: dict[str, Any]
    limits: dict[str, Any]
    num_new: int
    first_number: int = 0
    base: str | None = None
    stale: str | None = None
    rewritten: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """For each job the ``files`` read, and the ``error`` that a user can mend, or None.

        Ray would lose the exception itself among those that it wraps around it.
        """
        files: list[int] = []
        errors: list[str | None] = []
        for job in batch["id"]:
            try:
                files.append(self._do(int(job)))
                errors.append(None)
            except ShardError as error:
                files.append(0)
                errors.append(str(error))
        return {"files": files, "error": errors}

    def _do(self, job: int) -> int:
        if job >= self.num_new:
            return self._rewrite(int(self.rewritten[job - self.num_new]))
        rows = read_plan(Path(self.plan), job)
        number = self.first_number + job
        if read_committed(Path(self.staging), number) is None:
            write_shard(Path(self.staging), number, rows[0].split, self._samples(rows))
        return len(rows)

    def _rewrite(self, number: int) -> int:
        assert self.base is not None and self.stale is not None
        if read_committed(Path(self.staging), number) is None:
            stale = pq.read_table(self.stale, filters=pc.field("shard") == number)["uri"]
            without = [uri.decode() for uri in stale.to_pylist()]
            rewrite_shard(Path(self.base), Path(self.staging), number, without)
        return 0

    def _samples(self, rows: list[SourceRow]) -> Iterator[Sample | Quarantined]:
        sandbox = _sandbox(self.media, self.limits)
        for row in rows:
            made = 0
            try:
                for sample in self._samples_of(row, sandbox):
                    made += 1
                    yield sample
            except (MediaError, ShardError, OSError) as error:
                # A system's own text names the place, which the set's bytes must not.
                text = getattr(error, "strerror", None) or str(error)
                reason = " ".join(text.split()) or type(error).__name__
                if made:
                    reason += f" (after {made} samples, which are in the set)"
                yield Quarantined(row.uri, row.split, reason, short_trace(error))

    def _samples_of(self, row: SourceRow, sandbox: Sandbox) -> Iterator[Sample]:
        contents = read_contents(row, self.roots[row.split])
        sha256 = source_sha256(row, contents)
        # Keys must be unique and plain; paths are neither short nor free of dots.
        key = hashlib.sha256(row.uri.encode(errors="surrogateescape")).hexdigest()[:24]
        about = {"source": row.uri}
        if row.target is not None:
            about["class"] = self.media["classes"][row.target]
        values = row.values if row.target is None else {**row.values, "target": row.target}
        for number, members in enumerate(sandbox.run(contents, values)):
            members["json"] = json.dumps(about | ({"part": number} if number else {})).encode()
            yield Sample(
                f"{key}-{number:05d}" if number else key, members, row.target, row.uri, sha256
            )


def read_contents(row: SourceRow, root: str) -> dict[str, Content]:
    """The content and name of each of a source's files and inline fields, by field.

    What fails otherwise than by not being there is tried again, since networks do.

    Raises:
        MediaError: a file is too large.
        OSError: it cannot be read.
    """
    contents = {name: (data, "") for name, data in row.inline.items()}
    return contents | {part.field: (_read(root, part), part.path) for part in row.parts}


def _read(root: str, part: Part) -> bytes:
    filesystem, path = part_file(root, part)
    size = part.size if part.length is None else part.length
    if size < 0:
        size = filesystem.size(path)
    if size > MAX_FILE_BYTES:
        raise MediaError(f"{size} bytes, more than {MAX_FILE_BYTES}")
    for attempt in range(READ_ATTEMPTS):
        try:
            if part.offset is None:
                return filesystem.cat_file(path)
            data = filesystem.cat_file(path, start=part.offset, end=part.offset + size)
            if len(data) != size:
                raise MediaError(f"{len(data)} bytes came where {size} of a tar were asked for")
            return data
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError:
            if attempt == READ_ATTEMPTS - 1:
                raise
            time.sleep(READ_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def source_sha256(row: SourceRow, contents: dict[str, Content]) -> str:
    """The sha256 of a source's one file; of several files and values, of their sha256s."""
    sha256s = {name: hashlib.sha256(data).hexdigest() for name, (data, _) in contents.items()}
    if len(sha256s) == 1 and not row.values:
        return next(iter(sha256s.values()))
    text = json.dumps([sha256s, row.values], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _sandbox(media: dict[str, Any], limits: dict[str, Any]) -> Sandbox:
    name = json.dumps([media, limits], sort_keys=True)
    if name not in _sandboxes:
        for other in _sandboxes.values():
            other.close()
        _sandboxes.clear()
        _sandboxes[name] = Sandbox(FUNCTION, media, **limits)
    return _sandboxes[name]
