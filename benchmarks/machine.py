"""The machine of a measurement: its name, its rate of matrix products, its clock and its memory."""

import ctypes
import itertools
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from pipeline.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bf16_autocast": torch.bfloat16,
    "fp8": torch.bfloat16,
}
"""What products are autocast to, by precision as in `training.precision`."""
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
WARM_UP_STEPS = 2
MIN_STEPS = 3
PACKAGES = ("torch", "transformers", "perceiver-pytorch", "triton")


def describe(device: str, precision: str, seconds: float) -> dict[str, Any]:
    """Describe the machine, as a context for its figures.

    Args:
        device: `cpu`, `cuda` or `auto`, which means CUDA if there is a device.
        precision: `float32`, `bf16`, `bf16_autocast`, `fp8` or `auto`, which means bf16 with CUDA.
        seconds: How long to multiply matrices, in seconds.

    Returns:
        The chosen device and precision, the names and versions, and `matmul_flops_per_second`,
        measured on square matrices of side `matmul_size` in the chosen precision.

    Raises:
        UserError: If CUDA is requested but missing.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "float32"
    return {
        "device": device,
        "precision": precision,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(device),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "matmul_size": MATMUL_SIZE[device],
        "matmul_flops_per_second": matmul_rate(device, DTYPES[precision], seconds),
    }


def matmul_rate(device: str, dtype: torch.dtype, seconds: float) -> float:
    """Return the FLOPs per second of a product of two square matrices, at 2 per multiply-add.

    Args:
        device: `cpu` or `cuda`.
        dtype: The dtype of the matrices.
        seconds: The minimum time of the measurement, in seconds.
    """
    size = MATMUL_SIZE[device]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=product)

    times = time_steps(multiply, device, seconds, warm_up(multiply, device))
    return 2 * size**3 / statistics.median(times)


def warm_up(step: Callable[[], Any], device: str) -> float:
    """Run a step a few times, and return the seconds of the last one.

    The first steps allocate memory, compile and choose kernels.
    """
    for _ in range(WARM_UP_STEPS):
        begin = time.perf_counter()
        step()
        synchronize(device)
        seconds = time.perf_counter() - begin
    return seconds


def time_steps(
    step: Callable[[], Any], device: str, seconds: float, estimate: float
) -> list[float]:
    """Return the seconds of each step. There are at least 3 steps.

    On CUDA, the steps run back to back as in training, and events on the device time them.

    Args:
        step: The function to time.
        device: `cpu` or `cuda`.
        seconds: The minimum time of all steps, in seconds.
        estimate: The expected time of one step, in seconds.
    """
    count = max(MIN_STEPS, math.ceil(seconds / estimate))
    if device == "cpu":
        marks = [time.perf_counter()]
        for _ in range(count):
            step()
            marks.append(time.perf_counter())
        return _differences(marks)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    synchronize(device)
    return _differences([events[0].elapsed_time(event) / 1000 for event in events])


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


class Memory(NamedTuple):
    """The memory of a process on the device, in bytes.

    On the CPU these are resident sizes, which include the libraries. On CUDA they are what torch
    has allocated for tensors.

    Attributes:
        now: The current memory.
        peak: The largest memory since `reset_peak`.
    """

    now: int
    peak: int


def memory(device: str) -> Memory:
    """Return the memory of this process."""
    if device == "cuda":
        return Memory(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if not status.exists():
        # Here only the peak since the start of the process is known, in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Memory(psutil.Process().memory_info().rss, peak)
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Memory(now, peak)


def above(before: Memory, device: str) -> int:
    """Return by how many bytes the peak exceeds the earlier memory.

    The CPU's counters have a small error.

    Args:
        before: The earlier memory.
        device: `cpu` or `cuda`.
    """
    return max(0, memory(device).peak - before.now)


def reset_peak(device: str) -> None:
    """Reset the peak.

    If the system cannot do this on the CPU, the peak stays that of the process. On the CPU, memory
    that the allocator keeps for later is also released. Otherwise the next step could use it
    without being seen.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    forget = Path("/proc/self/clear_refs")
    if os.access(forget, os.W_OK):
        forget.write_text("5")


def limit_memory() -> None:
    """Limit this process to the memory that the machine has free.

    An allocation then fails as it does on a GPU. Without the limit, the kernel would kill a
    process.
    """
    free = psutil.virtual_memory().available
    data = psutil.Process().memory_info().rss
    resource.setrlimit(resource.RLIMIT_DATA, (free + data, resource.RLIM_INFINITY))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that the device has no more memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "bad_alloc" in text or "CUDA out of memory" in text


def _differences(marks: Iterable[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    if names.exists():
        for line in names.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
