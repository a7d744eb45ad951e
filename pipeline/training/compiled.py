"""torch.compile, so that a training repeats its bits on the same machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._inductor
from torch.utils import deterministic


@contextmanager
def compiled(model: torch.nn.Module, mode: str | None) -> Iterator[None]:
    """Compile a model in place, for as long as the context lasts.

    Left alone, the compiler sums gradients of embeddings by atomic additions from several threads,
    whose order is chance, picks GPU kernels by timing them, and makes others for shapes that vary
    than for the first one, so that a resumed training computes with other kernels. Here sums have
    an order, kernels are chosen without timing, and each shape has its own.

    Args:
        model: compiled when it is first called.
        mode: of `torch.compile`; None compiles nothing.
    """
    if mode is None:
        yield
        return
    options = {**torch._inductor.list_mode_options(mode), "deterministic": True}
    model.compile(options=options, dynamic=False)
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # of its class
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, unneeded
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned_only)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]  # as above
