"""One task of preprocessing: read a shard's sources, decode them, write the shard whole.

Runs in Ray's workers, so it imports neither torch nor Ray.
"""

import hashlib
import json
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.media.errors import MediaError, short_trace
from pipeline.media.members import FUNCTION
from pipeline.media.sandbox.child import NamedBlob
from pipeline.media.sandbox.sandbox import Sandbox, SandboxError
from pipeline.preprocess.sources import Reach, SourceRow, read_part, read_plan
from pipeline.preprocess.sources.parts import why_unreadable
from shards import (
    Quarantined,
    Sample,
    ShardError,
    read_committed,
    rewrite_shard,
    write_shard,
)

READ_AHEAD = 16
READ_AHEAD_LOCALLY = 2
"""Reads that go on while a source is decoded: networks have a latency to hide, disks little."""
READ_AHEAD_BYTES = 64 << 20
TOGETHER_BYTES = 1 << 20
"""Of small files on this machine's disks, read in one go."""

Source: TypeAlias = tuple[dict[str, NamedBlob], str]
"""A source's contents and their sha256."""

_sandboxes: dict[str, Sandbox] = {}
"""One for each worker process and configuration; its child outlives a task."""


@dataclass(frozen=True)
class ShardTask:
    """Makes the shards whose jobs come in a batch; for `Dataset.map_batches`.

    Job N below `num_new` writes the shard of the plan's row group N; those above take shards over
    from `base` without their stale sources.

    Attributes:
        plan: Parquet file whose row group N lists the sources of one shard.
        staging: folder that takes the shards.
        reaches: each split's folder or URL, and what else may be read there.
        media: settings of `pipeline.media.members.MemberMaker`.
        limits: `seconds` for each sample and `memory_bytes` of the decoder, and whether its
            protections are `required`.
        num_new: row groups of the plan.
        first_number: of the plan's first shard.
        base: folder of the set whose shards are taken over, or None.
        stale: Parquet file of uri and shard of its sources that are dropped.
        rewritten: int64 numbers of the shards that have such sources.
        value_places: where the listings lie whose rows hold values, by what the plan has of them.
    """

    plan: str
    staging: str
    reaches: dict[str, Reach]
    media: dict[str, Any]
    limits: dict[str, Any]
    num_new: int
    first_number: int = 0
    base: str | None = None
    stale: str | None = None
    rewritten: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    value_places: dict[str, str] = field(default_factory=dict)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """For each job the `files` read, those `kept` of an interrupted run, and an `error`.

        The error is one that a user can mend, or None.

        Ray would lose the exception itself among those that it wraps around it. `lacking` says
        which of the sandbox's protections are missing here, or None.
        """
        files: list[int] = []
        kept: list[int] = []
        errors: list[str | None] = []
        lacking: list[str | None] = []
        addresses = batch.get("addresses", [None] * len(batch["id"]))
        for job, of_its_files in zip(batch["id"], addresses, strict=True):
            read = there = 0
            error = None
            try:
                read, there = self._do(int(job), of_its_files or None)
            except (ShardError, SandboxError) as caught:
                error = str(caught)
            files.append(read)
            kept.append(there)
            errors.append(error)
            lacking.append(self._lacking())
        return {"files": files, "kept": kept, "error": errors, "lacking": lacking}

    def _lacking(self) -> str | None:
        """What the sandbox of the last job lacked, and where."""
        sandbox = _sandboxes.get(_sandbox_name(self.media, self.limits))
        missing = sandbox and sandbox.known_protections and sandbox.known_protections.lacking()
        return f"{socket.gethostname()}: {missing}" if missing else None

    def _do(self, job: int, addresses: str | None) -> tuple[int, int]:
        """Returns how many files it read, and how many an interrupted run had read."""
        if job >= self.num_new:
            self._rewrite(int(self.rewritten[job - self.num_new]))
            return 0, 0
        rows = read_plan(Path(self.plan), job, addresses, self.value_places)
        number = self.first_number + job
        if read_committed(Path(self.staging), number) is not None:
            return 0, len(rows)
        write_shard(Path(self.staging), number, rows[0].split, self._samples(rows))
        return len(rows), 0

    def _rewrite(self, number: int) -> None:
        assert self.base is not None and self.stale is not None
        if read_committed(Path(self.staging), number) is None:
            stale = pq.read_table(self.stale, filters=pc.field("shard") == number)["uri"]
            without = [uri.decode() for uri in stale.to_pylist()]
            rewrite_shard(Path(self.base), Path(self.staging), number, without)

    def _samples(self, rows: list[SourceRow]) -> Iterator[Sample | Quarantined]:
        sandbox = _sandbox(self.media, self.limits)
        for row, source in read_ahead(rows, self.reaches):
            made = 0
            try:
                for sample in self._samples_of(row, source, sandbox):
                    made += 1
                    yield sample
            except (MediaError, ShardError, OSError) as error:
                reason = _reason(error)
                if made:
                    reason += f" (after {made} samples, which are in the set)"
                yield Quarantined(row.uri, row.split, reason, short_trace(error))

    def _samples_of(
        self, row: SourceRow, source: Source | Exception, sandbox: Sandbox
    ) -> Iterator[Sample]:
        if isinstance(source, Exception):
            raise source
        contents, sha256 = source
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


def _reason(error: Exception) -> str:
    """One line without the place, which the set's bytes must not name."""
    if isinstance(error, OSError):
        return error.strerror or why_unreadable(error)
    return " ".join(str(error).split()) or type(error).__name__


def read_ahead(
    rows: list[SourceRow], reaches: dict[str, Reach]
) -> Iterator[tuple[SourceRow, Source | Exception]]:
    """Each source, or why it cannot be read; the next ones are read meanwhile.

    What is held ahead is bounded by `READ_AHEAD_BYTES`, beside the sources that are waited for.
    """
    waiting: deque[tuple[list[SourceRow], int, Future[list[Source | Exception]]]] = deque()
    held = 0
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        try:
            for together, size, is_far in _read_together(rows, reaches):
                limit = READ_AHEAD if is_far else READ_AHEAD_LOCALLY
                while waiting and (len(waiting) >= limit or held + size > READ_AHEAD_BYTES):
                    ready, its_size, sources = waiting.popleft()
                    held -= its_size
                    yield from zip(ready, sources.result(), strict=True)
                waiting.append((together, size, pool.submit(_read_all, together, reaches)))
                held += size
            while waiting:
                ready, _, sources = waiting.popleft()
                yield from zip(ready, sources.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_together(
    rows: list[SourceRow], reaches: dict[str, Reach]
) -> Iterator[tuple[list[SourceRow], int, bool]]:
    """Sources that one thread reads one after the other, the bytes expected, and whether from afar.

    Handing a file to a thread costs as much as reading a small one from a disk of this machine.
    """
    together: list[SourceRow] = []
    total = 0
    for row in rows:
        size, is_far = _expected_bytes(row), _is_far(row, reaches)
        if together and (is_far or total + size > TOGETHER_BYTES):
            yield together, total, False
            together, total = [], 0
        if is_far:
            yield [row], size, True
        else:
            together.append(row)
            total += size
    if together:
        yield together, total, False


def _is_far(row: SourceRow, reaches: dict[str, Reach]) -> bool:
    return any(
        "://" in place for place in (reaches[row.split].root, *(part.path for part in row.parts))
    )


def _read_all(rows: list[SourceRow], reaches: dict[str, Reach]) -> list[Source | Exception]:
    return [_read(row, reaches[row.split]) for row in rows]


def _read(row: SourceRow, reach: Reach) -> Source | Exception:
    """An exception is an answer: raised by a future, its trace would tell of threads' timing."""
    try:
        contents = read_contents(row, reach)
        return contents, source_sha256(row, contents)
    except (MediaError, ShardError, OSError) as error:
        return error


def _expected_bytes(row: SourceRow) -> int:
    """What a source will take; where that is not known, no more than four are read ahead."""
    sizes = [part.size if part.length is None else part.length for part in row.parts]
    return sum(READ_AHEAD_BYTES // 4 if size < 0 else size for size in sizes)


def read_contents(row: SourceRow, reach: Reach) -> dict[str, NamedBlob]:
    """The content and name of each of a source's files and inline fields, by field.

    Raises:
        MediaError: a file is too large, or a network does not give it.
        OSError: it cannot be read from this machine's own disks.
    """
    contents = {name: (data, "") for name, data in row.inline.items()}
    return contents | {part.field: (read_part(reach, part), part.path) for part in row.parts}


def source_sha256(row: SourceRow, contents: dict[str, NamedBlob]) -> str:
    """The sha256 of a source's one file; of several files and values, of their sha256s."""
    sha256s = {name: hashlib.sha256(data).hexdigest() for name, (data, _) in contents.items()}
    if len(sha256s) == 1 and not row.values:
        return next(iter(sha256s.values()))
    text = json.dumps([sha256s, row.values], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _sandbox(media: dict[str, Any], limits: dict[str, Any]) -> Sandbox:
    name = _sandbox_name(media, limits)
    if name not in _sandboxes:
        for other in _sandboxes.values():
            other.close()
        _sandboxes.clear()
        _sandboxes[name] = Sandbox(FUNCTION, media, **limits)
    return _sandboxes[name]


def _sandbox_name(media: dict[str, Any], limits: dict[str, Any]) -> str:
    return json.dumps([media, limits], sort_keys=True)
