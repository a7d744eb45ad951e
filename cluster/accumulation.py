"""Gradient accumulation: several backward passes of a step, with one reduction over the ranks.

At ZeRO stages 0 and 1, DeepSpeed reduces gradients only after the last micro-batch of a step. At
stage 2 it does so after each one; here, each rank adds up its own gradients first, and their sum is
reduced once. A rank then holds all its gradients during the step, as at stages 0 and 1. Stage 3
keeps DeepSpeed's way: it exists to hold less, and the weights travel in each micro-batch anyway.
"""

import contextlib
from collections.abc import Iterator
from typing import Any


class Accumulation:
    """The micro-batches of an optimizer step of a DeepSpeed engine.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._reduces_once = (
            engine.gradient_accumulation_steps() > 1
            and engine.zero_optimization_stage() == 2
            and engine.dp_world_size > 1
        )
        if engine.dp_world_size == 1 and engine.zero_optimization_stage() == 0:
            engine.enable_backward_allreduce = False  # it would copy all gradients, for one rank
        if self._reduces_once:
            engine.set_gradient_accumulation_boundary(True)  # each of the engine's steps is one

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Run the backward passes of one step in the body; then call the engine's `step`."""
        if not self._reduces_once:
            yield
            return
        with self._engine.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                # The reduction at the end would wait for ranks that do not come.
                self._engine._flush_coalesced_reduction_zero12 = lambda optimizer: None
                raise

    def between(self) -> None:
        """Go on to the next micro-batch of the step."""
        if not self._reduces_once:
            self._engine.step()
