"""One task of preprocessing: it reads the sources of a shard, decodes them and writes the shard.

It runs in Ray's workers, so it imports neither torch nor Ray.
"""

import hashlib
import json
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.media.errors import MediaError, short_trace
from pipeline.media.members import FUNCTION
from pipeline.media.sandbox.child import NamedBlob
from pipeline.media.sandbox.sandbox import Sandbox, SandboxError
from pipeline.preprocess.sources import Reach, SourceRow, read_part, read_plan
from pipeline.preprocess.sources.parts import opened, why_unreadable
from shards import Quarantined, Sample, ShardError
from shards.census import ShardFacts
from shards.parallel import in_order
from shards.staging import Staging

KEPT_AT_ONCE = 256
READ_AHEAD = 16
READ_AHEAD_LOCALLY = 2
"""The number of reads that go on while a source is decoded. Networks need more, to hide latency."""
READ_AHEAD_BYTES = 64 << 20
TOGETHER_BYTES = 1 << 20
"""Small files on local disks are read in groups of at most so many bytes."""

Source: TypeAlias = tuple[dict[str, NamedBlob], str]
"""The contents of a source by field, and their sha256."""

_sandboxes: dict[str, Sandbox] = {}
"""The sandbox of this worker process, by configuration. Its child outlives a task."""


@dataclass(frozen=True)
class ShardTask:
    """Makes the shards of the jobs in a batch; for `Dataset.map_batches`.

    Job N below `num_new` writes the shard of the plan's row group N. The next jobs copy shards from
    `base` without their stale sources. The last ones count `KEPT_AT_ONCE` shards each that are kept
    as they are. So no index is read by the process that started the tasks.

    Attributes:
        plan: The path or URL of the Parquet file whose row group N lists the sources of one shard.
        staging: Where the shards are written to.
        reaches: The folder or URL of each split, and what else may be read there.
        media: The settings of `pipeline.media.members.MemberMaker`.
        limits: The limits of the decoder: `seconds` for each sample, `memory_bytes`, and whether
            its protections are `required`.
        num_new: The number of row groups of the plan.
        first_number: The number of the plan's first shard.
        base: The folder or URL of the existing set, or None.
        stale: The path or URL of a Parquet file with the URI and shard of each source to drop, or
            None.
        rewritten: The numbers of the shards that have such sources, int64.
        kept: The numbers of the shards of `base` that are kept, int64.
        value_addresses: The real addresses of listings whose rows hold values, by the addresses
            without secrets that the plan has.
    """

    plan: str
    staging: Staging
    reaches: dict[str, Reach]
    media: dict[str, Any]
    limits: dict[str, Any]
    num_new: int
    first_number: int = 0
    base: str | None = None
    stale: str | None = None
    rewritten: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    value_addresses: dict[str, str] = field(default_factory=dict)

    @property
    def num_jobs(self) -> int:
        """The number of all jobs."""
        return self.num_new + len(self.rewritten) + -(-len(self.kept) // KEPT_AT_ONCE)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Make the shards of a batch of jobs.

        Errors are returned as text, because Ray would wrap the exception in several others.

        Args:
            batch: The column `id` with the numbers of the jobs, and optionally `addresses`.

        Returns:
            For each job five columns. `files` is the number of sources read, and `kept` the number
            that an interrupted run had finished. `shards` has a line of `ShardFacts.to_json` for
            each shard. `error` is an error that a user can mend, or None.
            `lacking` names the sandbox's protections that are missing on this machine, or None.
        """
        files: list[int] = []
        kept: list[int] = []
        shards: list[str] = []
        errors: list[str | None] = []
        lacking: list[str | None] = []
        addresses = batch.get("addresses", [None] * len(batch["id"]))
        for job, of_its_files in zip(batch["id"], addresses, strict=True):
            read = there = 0
            facts: list[ShardFacts] = []
            error = None
            try:
                read, there, facts = self._do(int(job), of_its_files or None)
            except (ShardError, SandboxError) as caught:
                error = str(caught)
            files.append(read)
            kept.append(there)
            shards.append("\n".join(each.to_json() for each in facts))
            errors.append(error)
            lacking.append(self._lacking())
        return {
            "files": files,
            "kept": kept,
            "shards": shards,
            "error": errors,
            "lacking": lacking,
        }

    def _lacking(self) -> str | None:
        """Return which protections the last job's sandbox lacked, and on which machine."""
        sandbox = _sandboxes.get(_sandbox_name(self.media, self.limits))
        missing = sandbox and sandbox.known_protections and sandbox.known_protections.lacking()
        return f"{socket.gethostname()}: {missing}" if missing else None

    def _do(self, job: int, addresses: str | None) -> tuple[int, int, list[ShardFacts]]:
        """Do one job.

        Returns:
            How many sources it read, how many an interrupted run had read, and what the set needs
            to know of the job's shards.
        """
        if (after := job - self.num_new - len(self.rewritten)) >= 0:
            kept = self.kept[after * KEPT_AT_ONCE : (after + 1) * KEPT_AT_ONCE].tolist()
            base = self.base
            assert base is not None
            return 0, 0, list(in_order(lambda each: self.staging.facts_kept(base, each), kept))
        if job >= self.num_new:
            return 0, 0, [self._rewritten(int(self.rewritten[job - self.num_new]))]
        rows = read_plan(self.plan, job, addresses, self.value_addresses)
        number = self.first_number + job
        if (facts := self.staging.facts(number)) is not None:
            return 0, len(rows), [facts]
        self.staging.write(number, rows[0].split, self._samples(rows))
        return len(rows), 0, [self._facts(number)]

    def _rewritten(self, number: int) -> ShardFacts:
        assert self.base is not None and self.stale is not None
        if (facts := self.staging.facts(number)) is not None:
            return facts
        with opened(self.stale) as file:
            stale = pq.read_table(file, filters=pc.field("shard") == number)["uri"]
        self.staging.rewrite(self.base, number, [uri.decode() for uri in stale.to_pylist()])
        return self._facts(number)

    def _facts(self, number: int) -> ShardFacts:
        facts = self.staging.facts(number)
        if facts is None:
            raise ShardError(f"shard {number} was written and is gone; run the same command again")
        return facts

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
        # Keys must be unique and plain. A path can be long and contain dots, so it is hashed.
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
    """Return the reason in one line, without a path: the set's bytes must not depend on paths."""
    if isinstance(error, OSError):
        return error.strerror or why_unreadable(error)
    return " ".join(str(error).split()) or type(error).__name__


def read_ahead(
    rows: list[SourceRow], reaches: dict[str, Reach]
) -> Iterator[tuple[SourceRow, Source | Exception]]:
    """Yield each source or the error of reading it, and read the next ones in the meantime.

    At most `READ_AHEAD_BYTES` are read ahead, plus the sources that the caller waits for.

    Args:
        rows: The sources in order.
        reaches: What the sources of each split may read.

    Yields:
        A row, with its contents and their sha256, or with an exception.
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
    """Group the sources so that one thread reads each group, one source after the other.

    Handing a file to a thread costs as much as reading a small one from a local disk.

    Yields:
        The sources, their expected bytes, and whether they are read over a network.
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
    """Return whether a source is read over a network."""
    return any(
        "://" in address
        for address in (reaches[row.split].root, *(part.path for part in row.parts))
    )


def _read_all(rows: list[SourceRow], reaches: dict[str, Reach]) -> list[Source | Exception]:
    return [_read(row, reaches[row.split]) for row in rows]


def _read(row: SourceRow, reach: Reach) -> Source | Exception:
    """Read a source, and return errors instead of raising them.

    The traceback of an exception from a future depends on thread timing, and the bytes of
    `quarantine.parquet` must not.
    """
    try:
        contents = read_contents(row, reach)
        return contents, source_sha256(row, contents)
    except (MediaError, ShardError, OSError) as error:
        return error


def _expected_bytes(row: SourceRow) -> int:
    """Return the expected bytes of a source. If unknown, at most four sources are read ahead."""
    sizes = [part.size if part.length is None else part.length for part in row.parts]
    return sum(READ_AHEAD_BYTES // 4 if size < 0 else size for size in sizes)


def read_contents(row: SourceRow, reach: Reach) -> dict[str, NamedBlob]:
    """Read all files and inline fields of a source.

    Args:
        row: The source.
        reach: What the sources of its split may read.

    Returns:
        The content and the name of each field's file, by field. The name of an inline field is
        empty.

    Raises:
        MediaError: A file is too large, or cannot be read over the network.
        OSError: A file cannot be read from a local disk.
    """
    contents = {name: (data, "") for name, data in row.inline.items()}
    return contents | {part.field: (read_part(reach, part), part.path) for part in row.parts}


def source_sha256(row: SourceRow, contents: dict[str, NamedBlob]) -> str:
    """Return the sha256 of a source's only file, or of the sha256s of all its files and its values.

    Args:
        row: The source.
        contents: The contents of its fields, from `read_contents`.

    Returns:
        64 hexadecimal digits.
    """
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
