"""Streams: inputs that arrive in parts and are read with constant memory.

The latents after one part are the start for the next part, in place of the learned latents. This
makes a recurrent Perceiver, which is trained by backpropagation through the parts.
"""

from collections.abc import Iterable, Iterator

import torch

from perceiver_model.families.classifier import PerceiverClassifier

StreamChunk = torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]
"""A part of a stream: the inputs, or the inputs and their mask."""


def read_stream(
    model: PerceiverClassifier,
    parts: Iterable[StreamChunk],
    *,
    state: torch.Tensor | None = None,
    detach_every: int | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the logits `[batch, num_classes]` and the state after each part.

    Args:
        model: The classifier.
        parts: The parts of a batch of streams, each in the form that the model's `forward` takes.
        state: The latents `[batch, num_latents, latent_dim]` at the end of an earlier call. None
            means the learned latents.
        detach_every: Cut the graph after this number of parts, so that gradients reach no further
            back and memory does not grow with the stream. This is truncated backpropagation: call
            `backward` before the next part. With None the graph is never cut, so memory grows
            unless gradients are off.

    Raises:
        ValueError: If `detach_every` is not positive, or the model refuses a part.
    """
    if detach_every is not None and detach_every < 1:
        raise ValueError(f"detach_every {detach_every}: must be at least 1, or None")
    for count, part in enumerate(parts, start=1):
        inputs, mask = part if isinstance(part, tuple) else (part, None)
        logits, state = model.forward_state(inputs, mask, state=state)
        if detach_every is not None and count % detach_every == 0:
            state = state.detach()
        yield logits, state
