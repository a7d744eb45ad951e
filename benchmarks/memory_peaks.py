"""Three instruments for the peak of memory in a part of a process's work.

`live tensors` counts what torch's operations return, `torch's profiler` what its CPU allocator
gives and takes back, and `resident` asks the kernel what the process holds. The first two see
tensors only. The third sees everything that came after the instrument's start: what libraries
allocate themselves, and what malloc keeps of freed memory.
"""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.plan.live_tensors import LiveTensors

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""The environment in which malloc gives memory back to the kernel at once."""
_MARK = "measured part"


class Instrument(Protocol):
    """Measures a peak.

    Attributes:
        peak: The largest number of bytes in the measured part, once the instrument has ended.
    """

    peak: int

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that are there already."""

    def measured(self) -> contextlib.AbstractContextManager[None]:
        """Measure what runs in the body."""


class _Live:
    def __init__(self, live: LiveTensors) -> None:
        self._live, self.peak = live, 0

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            self._live.add(tensor)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        self._live.restart()
        yield
        self.peak = self._live.peak_with_gradients


class _Marked:
    """Lets another instrument know in its own records when the measured part was."""

    def __init__(self) -> None:
        self.peak = 0

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count nothing: the tensors were made while the instrument was there."""

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        with record_function(_MARK):
            yield


class _Resident(_Marked):
    def __init__(self) -> None:
        super().__init__()
        self._before = _status("VmRSS")

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again at VmRSS
        yield
        self.peak = _status("VmHWM") - self._before


@contextlib.contextmanager
def live_tensors() -> Iterator[Instrument]:
    """Count the bytes of all tensors that are alive."""
    with LiveTensors() as live:
        yield _Live(live)


@contextlib.contextmanager
def torch_profiler() -> Iterator[Instrument]:
    """Add up what torch's profiler says that the CPU allocator gives and takes back."""
    found = _Marked()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    events = results.events()
    (mark,) = (event for event in events if event.name() == _MARK)
    held = 0
    memory = (event for event in events if event.name() == "[memory]")
    for event in sorted(memory, key=lambda each: each.start_ns()):
        held += event.nbytes()
        if mark.start_ns() <= event.start_ns() <= mark.end_ns():
            found.peak = max(found.peak, held)


@contextlib.contextmanager
def resident() -> Iterator[Instrument]:
    """Ask Linux for the most that the process held, less what it held before."""
    gc.collect()
    yield _Resident()


INSTRUMENTS: dict[str, Callable[[], contextlib.AbstractContextManager[Instrument]]] = {
    "live tensors": live_tensors,
    "torch's profiler": torch_profiler,
    "resident": resident,
}


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
