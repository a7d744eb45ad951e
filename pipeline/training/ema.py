"""The exponential moving average (EMA) of the weights over the optimizer's steps."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cluster.engine_state import TensorSource, fill, flat_tensors, weights_to_model
from cluster.fragments import Fragment, trained_fragments

FIRST_WEIGHTS = 0.01
"""The share of the first weights in an average from which on the user is told of it."""
LEAST_STEPS = 100
"""The number of steps from which on another decay is proposed."""


def lagging_average(decay: float | None, steps: int) -> str | None:
    """Return a note if a training is too short for its average, or None.

    The average forgets a weight at the rate of `decay` in each step, and so spans about
    1 / (1 - decay) steps. If these are a large part of the training, it still holds much of the
    first weights at the end.

    Args:
        decay: The field `training.ema_decay`.
        steps: The number of optimizer steps of the training.
    """
    if decay is None or decay**steps < FIRST_WEIGHTS:
        return None
    fitting = f"; {1 - 10 / steps:.2g} would not" if steps >= LEAST_STEPS else ""
    return (
        f"training.ema_decay is {decay:g}, and the training has {steps} steps: at the end, the "
        f"average holds {decay**steps:.0%} of the first weights{fitting}"
    )


class WeightAverage:
    """The moving average of an engine's weights, in float32.

    Each rank averages the tensors that its optimizer steps, which under ZeRO are slices. An average
    depends on each element alone, so the slices are those of the whole average.

    Args:
        engine: DeepSpeed's engine. The average begins at its weights.
        decay: The share of the average that stays in each step.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self._engine = engine
        self._average = get_ema_multi_avg_fn(decay)
        self._averaged = [tensor.detach().clone() for tensor in flat_tensors(engine)]

    def update(self) -> None:
        """Add the weights after a step."""
        tensors = [tensor.detach() for tensor in flat_tensors(self._engine)]
        self._average(self._averaged, tensors, None)

    def restore(self, averaged: TensorSource) -> None:
        """Take up an average from a checkpoint. Each rank reads only what it averages."""
        with self._swapped():
            fill(trained_fragments(self._engine), averaged)

    @contextlib.contextmanager
    def fragments(self) -> Iterator[list[Fragment]]:
        """Yield what this rank holds of the average, which may be loaded in the body."""
        with self._swapped():
            yield trained_fragments(self._engine)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the average in the body. All ranks must call this."""
        with self._swapped():
            weights_to_model(self._engine)
            yield
        weights_to_model(self._engine)

    @contextlib.contextmanager
    def _swapped(self) -> Iterator[None]:
        """Let the optimizer's tensors hold the average in the body, and the average the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for own, tensor in zip(self._averaged, flat_tensors(self._engine), strict=True):
            held = tensor.detach().clone()
            tensor.copy_(own)
            own.copy_(held)
