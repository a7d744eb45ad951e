"""What an offload to NVMe needs of a machine: libaio, locked memory, and a folder with room.

DeepSpeed writes its swap files at fixed names below a folder. So each process gets a folder of its
own, or two trainings with the same `nvme_path` would overwrite each other's weights.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError
from cluster.extension_builds import builds_held
from cluster.owned_folder import owned_folder
from cluster.strategy import Strategy

FIELD = "training.offload"
_PREFIX = "perceiver-swap-"


@contextlib.contextmanager
def swap_folder(
    strategy: Strategy, num_parameters: int, *, local_rank: int
) -> Iterator[str | None]:
    """Yield a new folder for the swap files of this process, and remove it at the end.

    Folders that killed processes have left are removed first.

    Args:
        strategy: The strategy, with the `nvme_path` of the configuration.
        num_parameters: The number of the model's parameters.
        local_rank: The rank on this machine.

    Yields:
        The folder; None if the strategy uses no NVMe.

    Raises:
        ClusterError: DeepSpeed cannot use NVMe here, or the folder cannot be written or has not
            enough room.
    """
    if strategy.nvme_path is None:
        yield None
        return
    require_nvme(strategy, num_parameters)
    parent = Path(strategy.nvme_path)
    needed = math.ceil(num_parameters / strategy.world_size) * strategy.nvme_file_bytes
    with contextlib.ExitStack() as opened:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = opened.enter_context(owned_folder(_PREFIX, parent))
            free = shutil.disk_usage(parent).free
        except OSError as error:
            raise ClusterError(
                f"{FIELD}.nvme_path={parent}: cannot be written ({error.strerror})"
            ) from None
        if free < needed * (local_rank + 1):
            raise ClusterError(
                f"{FIELD}.nvme_path={parent}: has {free / 2**30:.1f} GiB free, and {local_rank + 1}"
                f" workers on this machine need {needed * (local_rank + 1) / 2**30:.1f} GiB; give "
                "a folder with more room, or offload to cpu"
            )
        yield str(folder)


def require_nvme(strategy: Strategy, num_parameters: int, largest_part: int = 0) -> None:
    """Check that DeepSpeed can read and write NVMe here, if the strategy needs it.

    Args:
        strategy: The strategy.
        num_parameters: The number of the model's parameters.
        largest_part: The elements of a rank's largest part of a weight; 0 if it is not known yet.

    Raises:
        ClusterError: It cannot; the message says what to install or to allow.
    """
    if strategy.nvme_path is None:
        return
    _build_aio(strategy.nvme_path)
    locked = strategy.nvme_buffer_bytes(num_parameters, largest_part)
    if not _can_lock(locked):
        raise ClusterError(
            f"{FIELD}: NVMe is read and written through {locked / 2**20:.0f} MiB of locked memory "
            "for each worker, and this machine does not allow as much ('ulimit -l' says how many "
            "KiB); raise the limit (containers: --ulimit memlock=-1), lower "
            "training.deepspeed.zero_optimization.sub_group_size, or offload to cpu"
        )


@functools.cache
def _build_aio(nvme_path: str) -> None:
    """Build the op that reads and writes NVMe, unless an earlier process has."""
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        raise ClusterError(
            f"{FIELD}: NVMe ({nvme_path}) is read and written with libaio, which DeepSpeed cannot "
            "find on this machine; install it with its headers (Debian, Ubuntu: apt install "
            "libaio-dev), g++ and ninja, or offload to cpu"
        )
    try:
        with builds_held((builder.name, "pin_memory")):
            builder.load(verbose=False)
    except OSError as error:
        raise ClusterError(
            f"{FIELD}: DeepSpeed builds what reads and writes NVMe in a folder that cannot be "
            f"written ({error}); set TORCH_EXTENSIONS_DIR to another one, or offload to cpu"
        ) from None
    except (RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"{FIELD}: DeepSpeed cannot build what reads and writes NVMe ({reason}); it needs "
            "libaio with its headers, g++ and ninja. Or offload to cpu"
        ) from None


def _can_lock(num_bytes: int) -> bool:
    """Return whether this process may lock so much memory now. DeepSpeed crashes if it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        pages = mmap.mmap(-1, num_bytes)
    except OSError:
        return False
    with contextlib.closing(pages):
        view = ctypes.c_char.from_buffer(pages)
        try:
            is_locked = libc.mlock(ctypes.byref(view), ctypes.c_size_t(num_bytes)) == 0
            if is_locked:
                libc.munlock(ctypes.byref(view), ctypes.c_size_t(num_bytes))
        finally:
            del view  # or the pages cannot be closed
    return is_locked
