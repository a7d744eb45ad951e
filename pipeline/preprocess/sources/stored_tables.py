"""Tables that lie outside this process's memory, and the steps that turn some into others.

A step is a generator function of a module. It gets `StoredTable`s among its arguments, yields
tables, and returns a summary that is small. A store runs steps in this process and keeps their
tables in temporary files. After `ROWS_HERE` rows it runs them as Ray tasks, if it may start Ray,
and their tables are Ray's objects. So this process holds one table at a time, and the same steps
work on machines without a common disk.
"""

import contextlib
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from cluster.owned_folder import owned_folder

ROWS_HERE = 1 << 18
"""A source of more rows is listed by Ray tasks. For fewer, starting Ray takes longer."""
BYTES_IN_MEMORY = 64 << 20
"""So many bytes of a store's tables stay in memory. Small sources never touch the disk."""
TASKS_PER_CPU = 2

Step: TypeAlias = Callable[..., Iterator[pa.Table]]


@dataclass(frozen=True)
class StoredTable:
    """A table in memory, in a temporary file or in Ray's object store.

    Attributes:
        num_rows: The number of its rows.
        num_bytes: Its size in memory, in bytes.
        holds_secrets: Whether addresses in it hold secrets.
    """

    num_rows: int
    num_bytes: int
    holds_secrets: bool
    _held: Any

    @classmethod
    def of(cls, table: pa.Table, held: Any) -> "StoredTable":
        """Describe a table that is held somehow."""
        return cls(table.num_rows, table.nbytes, _holds_secrets(table), held)

    def load(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table, or only some of its columns."""
        if isinstance(self._held, _SpillFile):
            return self._held.read(columns)
        table = self._held
        if not isinstance(table, pa.Table):
            import ray

            table = ray.get(table)
        return table if columns is None else table.select(list(columns))

    def sent(self) -> "StoredTable":
        """Return the same table so that a Ray task can load it."""
        if not isinstance(self._held, _SpillFile):
            return self
        import ray

        return replace(self, _held=ray.put(self.load()))


class _SpillFile:
    """A temporary file with a table. It is removed when nothing refers to it."""

    def __init__(self, path: Path, table: pa.Table) -> None:
        self._path = path
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, table.schema, options=options) as writer,
        ):
            writer.write_table(table.combine_chunks())
        weakref.finalize(self, _remove, path).atexit = False

    def read(self, columns: Sequence[str] | None) -> pa.Table:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        with pa.OSFile(str(self._path), "rb") as file:
            if columns is not None:
                names = pa.ipc.open_file(file).schema.names
                options.included_fields = [names.index(name) for name in columns]
                file.seek(0)
            table = pa.ipc.open_file(file, options=options).read_all()
        return table if columns is None else table.select(list(columns))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class TableStore:
    """Keeps tables and runs steps. At the end of `with`, its files and its Ray session are gone.

    Args:
        ray_session: Starts a Ray session, or None if steps must stay in this process.
        task_options: What a Ray task reserves, and where it may run; the options of `ray.remote`.
    """

    def __init__(
        self,
        ray_session: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
        task_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._ray_session = ray_session
        self._task_options = {"num_cpus": 1} if task_options is None else task_options
        self._opened = contextlib.ExitStack()
        self._in_memory = 0
        self._folder: Path | None = None
        self._num_files = 0
        self._rows = 0
        self._task: Any = None
        self._most_tasks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, traceback)
        self._folder, self._task, self._ray_session = None, None, None

    def put(self, table: pa.Table) -> StoredTable:
        """Keep a table. What holds secrets stays in memory, because it must not be on a disk."""
        if self._task is not None:
            import ray

            return StoredTable.of(table, ray.put(table))
        table = table.slice(0)  # an object of our own, whose end is noticed
        about = StoredTable.of(table, table)
        if self._in_memory + about.num_bytes <= BYTES_IN_MEMORY or about.holds_secrets:
            self._in_memory += about.num_bytes
            weakref.finalize(table, self._forget, about.num_bytes).atexit = False
            return about
        if self._folder is None:
            made = owned_folder("perceiver-sources-", Path(tempfile.gettempdir()))
            self._folder = self._opened.enter_context(made)
        self._num_files += 1
        file = _SpillFile(self._folder / f"{self._num_files}.arrow", table)
        return replace(about, _held=file)

    def _forget(self, size: int) -> None:
        self._in_memory -= size

    def run(
        self, step: Step, calls: Iterable[Sequence[Any]]
    ) -> Iterator[tuple[list[StoredTable], Any]]:
        """Run a step for each call, and yield its tables and its summary in the order of the calls.

        Args:
            step: The step.
            calls: The arguments of each call. `StoredTable`s are arguments or in lists of them.

        Raises:
            Exception: What the step raises.
        """
        waiting: deque[Any] = deque()
        for call in calls:
            if not self._uses_ray():
                yield self._run_here(step, call)
                continue
            waiting.append(self._task.remote(step, list(map(_sent, call))))
            if len(waiting) >= self._most_tasks:
                yield self._collected(waiting.popleft())
        while waiting:
            yield self._collected(waiting.popleft())

    def _uses_ray(self) -> bool:
        if self._task is None and self._ray_session is not None and self._rows > ROWS_HERE:
            self._opened.enter_context(self._ray_session())
            import ray

            self._task = ray.remote(num_returns="streaming", **self._task_options)(_run_there)
            self._most_tasks = max(2, int(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
        return self._task is not None

    def _run_here(self, step: Step, call: Sequence[Any]) -> tuple[list[StoredTable], Any]:
        tables: list[StoredTable] = []
        made = iter(step(*call))
        while True:
            try:
                table = next(made)
            except StopIteration as end:
                return tables, end.value
            self._rows += table.num_rows
            tables.append(self.put(table))

    def _collected(self, running: Any) -> tuple[list[StoredTable], Any]:
        import ray

        *tables, last = list(running)
        sizes, summary, error = ray.get(last)
        if error is not None:
            raise error
        return [
            replace(about, _held=ref) for about, ref in zip(sizes, tables, strict=True)
        ], summary


def _run_there(step: Step, call: list[Any]) -> Iterator[Any]:
    """Run a step in a Ray task. Errors are returned, because Ray would wrap them."""
    sizes: list[StoredTable] = []
    made = step(*call)
    while True:
        try:
            table = next(made)
        except StopIteration as end:
            yield sizes, end.value, None
            return
        except Exception as error:
            yield sizes, None, error
            return
        sizes.append(StoredTable.of(table, None))
        yield table


def _sent(argument: Any) -> Any:
    if isinstance(argument, StoredTable):
        return argument.sent()
    return list(map(_sent, argument)) if isinstance(argument, list) else argument


def _holds_secrets(table: pa.Table) -> bool:
    """Return whether files of the samples have addresses that hold secrets."""
    if "parts" not in table.column_names:
        return False
    flat = pc.list_flatten(table["parts"])
    addresses = pc.struct_field(flat, "address") if "address" in _names(flat.type) else None
    return addresses is not None and addresses.null_count < len(addresses)


def _names(kind: pa.StructType) -> list[str]:
    return [field.name for field in kind]
