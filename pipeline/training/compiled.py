"""Use `torch.compile` so that a training is bit-reproducible on the same machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def compiled(model: torch.nn.Module, mode: str | None) -> Iterator[None]:
    """Compile a model in place while the context lasts.

    By default the compiler breaks reproducibility in three ways. It sums the gradients of
    embeddings with atomic additions, in a random order. It picks GPU kernels by timing them. After
    the first shape, it makes other kernels for shapes that vary, so a resumed training would use
    other kernels. Here the sums have a fixed order, kernels are chosen without timing, and each
    shape has its own.

    Args:
        model: The model. It is compiled when it is first called.
        mode: The mode of `torch.compile`; None does not compile.
    """
    if mode is None:
        yield
        return
    import torch._inductor  # takes a second, which most trainings need not spend

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
