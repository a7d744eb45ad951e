"""The console shows a person the progress and the results. All other output goes to a log file."""

import contextlib
import io
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from pipeline.runs.strict_json import to_json
from pipeline.runs.watcher import report_log
from shards.plain import printable
from shards.redaction import redacted, redacted_tree


class _RateColumn(ProgressColumn):
    """The rate, such as `412 images/s` or `0.083 epochs/s`."""

    def render(self, task: Task) -> Text:
        rate = task.fields["rate"]
        if not rate:
            return Text()
        number = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return Text(f"{number} {task.fields['unit']}/s", style="dim")


class _RemainingColumn(ProgressColumn):
    """The remaining time at the shown rate, such as `0:03:20`."""

    def render(self, task: Task) -> Text:
        rate, end = task.fields["rate"], task.fields["end"]
        if end is not None:
            seconds = end - time.monotonic()
        elif rate and task.remaining is not None:
            seconds = task.remaining / rate
        else:
            return Text()
        return Text(str(timedelta(seconds=math.ceil(max(0.0, seconds)))), style="dim")


class Estimate(NamedTuple):
    """What the work itself knows about its speed.

    Attributes:
        rate: The units per second; None if it is not known.
        seconds: The remaining time, in seconds; None if it is not known.
    """

    rate: float | None
    seconds: float | None


class _Display(Progress):
    """A progress bar below a table, if it has one."""

    table: Table | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        if self.table is not None:
            yield self.table
        yield from super().get_renderables()


class Bar:
    """One progress bar; in a stream that is no terminal, a line at intervals.

    The rate covers the last `WINDOW` seconds, or the last two steps if they took longer. Work that
    was finished earlier, or that is only copied, does not count.

    Args:
        progress: The display of the bar.
        task: The bar's task in it.
        completed: The amount that is complete at the start.
    """

    WINDOW = 30.0
    LINE_SECONDS = 30.0
    """The interval between two lines."""

    def __init__(self, progress: _Display, task: Any, completed: float = 0.0) -> None:
        self._progress, self._task = progress, task
        self._completed = completed
        self._estimate: Estimate | None = None
        self._steps: deque[tuple[float, float]] = deque([(time.monotonic(), completed)])
        self._line_at = time.monotonic()

    def advance(self, amount: float) -> None:
        """Move forward by `amount`."""
        self.update(self._completed + amount)

    def skip(self, amount: float) -> None:
        """Move forward by an `amount` that was finished earlier. It does not change the rate."""
        self._steps = deque((when, done + amount) for when, done in self._steps)
        self._completed += amount
        self._progress.update(self._task, completed=self._completed)

    def update(
        self,
        completed: float,
        note: str | None = None,
        total: float | None = None,
        estimate: Estimate | None = None,
    ) -> None:
        """Move to `completed`. The bar never moves back: repeated work does not count again.

        Args:
            completed: The amount that is complete now.
            note: A text to show after the bar; None keeps the last one.
            total: A new total; None keeps the last one.
            estimate: The rate and the remaining time to show; None shows those of the bar's own
                steps.
        """
        if completed > self._completed:
            self._completed = completed
            self._steps.append((time.monotonic(), completed))
            # One step from before the window stays, so that the rate covers at least two steps.
            while len(self._steps) > 2 and self._steps[-1][0] - self._steps[1][0] > self.WINDOW:
                self._steps.popleft()
        if note is not None:
            self._progress.update(self._task, note=_shown(note))
        rate = self.rate() if estimate is None else estimate.rate
        self._progress.update(self._task, completed=self._completed, total=total, rate=rate)
        if estimate is not None and estimate != self._estimate:
            self._estimate, seconds = estimate, estimate.seconds
            end = None if seconds is None else time.monotonic() + seconds
            self._progress.update(self._task, end=end)
        self._print_line()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table above the bar in a terminal, in place of the last one."""
        if self._progress.console.is_terminal:
            self._progress.table = _table(title, columns, rows)

    def _print_line(self) -> None:
        """Print the bar as a line, if no terminal shows it and the last line is old."""
        console, now = self._progress.console, time.monotonic()
        if console.is_terminal or now - self._line_at < self.LINE_SECONDS:
            return
        self._line_at = now
        console.print(self._progress.get_renderable())

    def rate(self) -> float | None:
        """Return the units per second, or None before the first step."""
        (begun, before), (ended, after) = self._steps[0], self._steps[-1]
        return (after - before) / (ended - begun) if ended > begun else None


class Console:
    """The output of a command for a person. It shows no secrets of addresses.

    Args:
        out: The stream for results; by default standard output.
        progress: The stream for progress and notices; by default standard error.
        as_json: Whether to print the results as one JSON object at the end. Then everything else
            goes to `progress`.
    """

    def __init__(
        self, out: IO[str] | None = None, progress: IO[str] | None = None, as_json: bool = False
    ) -> None:
        self.as_json = as_json
        self._json_file = out or sys.stdout
        self.log: Path | None = None
        notices = progress or sys.stderr
        self._out = _rich(notices if as_json else self._json_file)
        self._notices = _rich(notices)

    def say(self, text: str) -> None:
        """Print one line of the result."""
        self._out.print(_shown(text), markup=False, highlight=False, soft_wrap=True)

    def notice(self, text: str) -> None:
        """Print one line about the progress."""
        self._notices.print(_shown(text), markup=False, highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table of results. Columns of numbers are aligned to the right."""
        self._out.print(_table(title, columns, rows))

    @property
    def terminal_height(self) -> int | None:
        """The number of lines of the terminal that shows the progress; None if there is none."""
        return self._notices.height if self._notices.is_terminal else None

    @contextlib.contextmanager
    def bar(
        self, description: str, total: float, unit: str, *, completed: float = 0.0
    ) -> Iterator[Bar]:
        """Show a progress bar with its rate and the remaining time.

        Args:
            description: The text before the bar.
            total: The amount of work.
            unit: The unit of the amount, in the plural.
            completed: The amount that was finished earlier.
        """
        with _Display(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _RateColumn(),
            _RemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._notices,
            refresh_per_second=4,
        ) as progress:
            task = progress.add_task(
                description, total=total, unit=unit, note="", rate=None, end=None
            )
            progress.update(task, completed=completed)
            try:
                yield Bar(progress, task, completed)
            finally:
                progress.table = None  # what is left in the terminal is the bar

    def result(self, value: dict[str, Any]) -> None:
        """Print the command's JSON object as the last line of the output, if `as_json` is set."""
        if self.as_json:
            print(to_json(redacted_tree(value)), file=self._json_file, flush=True)


def _rich(file: IO[str]) -> RichConsole:
    # Without a terminal rich would wrap tables at 80 columns.
    return RichConsole(file=file, width=None if file.isatty() else 200)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=redacted(title), title_justify="left", title_style="bold", expand=False)
    for number, column in enumerate(columns):
        numeric = all(isinstance(row[number], int | float) for row in rows) and rows
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(_cell(value))) for value in row))
    return table


def _shown(text: str) -> str:
    """Remove secrets, and characters that would control the terminal. Line breaks stay."""
    return "\n".join(map(printable, redacted(text).split("\n")))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def logged(console_kwargs: dict[str, Any], folder: Path | None, verb: str) -> Iterator[Console]:
    """Redirect the output of this process and its children to a log file, and yield a console.

    The file descriptors 1 and 2 themselves are redirected, because child processes and the native
    code of Ray and DeepSpeed write to them. What Python writes to its own streams is logged without
    the secrets of addresses.

    Args:
        console_kwargs: The arguments of `Console`.
        folder: The folder of the log file; None uses a temporary file.
        verb: The verb, which names the file.
    """
    import tempfile

    sys.stdout.flush()
    sys.stderr.flush()
    out, err = os.dup(1), os.dup(2)
    if folder is None:
        handle, name = tempfile.mkstemp(prefix=f"perceiver-{verb}-", suffix=".log")
        path = Path(name)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    report_log(path)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        with (
            os.fdopen(out, "w", closefd=False) as o,
            os.fdopen(err, "w", closefd=False) as e,
            _redacted_streams(),
        ):
            console = Console(o, e, **console_kwargs)
            console.log = path
            yield console
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)


@contextlib.contextmanager
def _redacted_streams() -> Iterator[None]:
    out, err = _RedactedStream(sys.stdout), _RedactedStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.finish()
            err.finish()


class _RedactedStream(io.TextIOBase):
    """Writes to another stream line by line, without the secrets of addresses.

    Args:
        to: The other stream. It stays open.
    """

    encoding = "utf-8"

    def __init__(self, to: Any) -> None:
        self._to = to
        self._line = ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._to.fileno())

    def isatty(self) -> bool:
        return bool(self._to.isatty())

    def write(self, text: str, /) -> int:
        with self._lock:
            whole, newline, self._line = (self._line + text).rpartition("\n")
            self._to.write(redacted(whole + newline))
        return len(text)

    def flush(self) -> None:
        self._to.flush()

    def finish(self) -> None:
        """Write the last line, which has no line break."""
        with self._lock:
            self._to.write(redacted(self._line))
            self._line = ""
