"""The latents that are carried from part to part of recordings that are read as streams."""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training.objectives.base import Objective
from pipeline.training.objectives.batch import Batch


@dataclass(frozen=True)
class Carried:
    """What each row of a batch carries from one part of its recording to the next.

    Attributes:
        latents: float32 `[rows, num_latents, latent_dim]`; None before the first part.
        waiting: Rows in whose recording no part could be read yet, bool `[rows]`; None before the
            first part.
    """

    latents: torch.Tensor | None = None
    waiting: torch.Tensor | None = None

    def detached(self) -> "Carried":
        """Return the same, without the graph that computed it."""
        latents = None if self.latents is None else self.latents.detach()
        return Carried(latents, self.waiting)


def read_part(
    objective: Objective, model: Any, batch: Batch, firsts: torch.Tensor, carried: Carried
) -> tuple[Any, Carried]:
    """Read the next part of every row's recording.

    A row starts from the learned latents at the first part of a recording that can be read. A part
    that cannot be read changes nothing: the next one starts from the latents before it.

    Args:
        objective: What the model is trained for.
        model: The module, or DeepSpeed's engine around it.
        batch: The parts. Rows of weight 0 are parts that cannot be read, or padding.
        firsts: Which rows hold the first part of a recording, bool `[rows]`, on the device.
        carried: What the rows carry from their previous parts.

    Returns:
        The model's outputs, as from `Objective.outputs`, and what the rows carry now.
    """
    starts = firsts if carried.waiting is None else firsts | carried.waiting
    outputs, latents = objective.stream_outputs(model, batch, carried.latents, starts)
    latents = latents.float()
    if carried.latents is not None:
        latents = torch.where(batch.good[:, None, None], latents, carried.latents)
    return outputs, Carried(latents, starts & ~batch.good)
