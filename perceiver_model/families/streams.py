"""Streams: inputs that come part by part, read with constant memory.

The latents that have read a part are where the next part's reading starts, instead of the learned
ones: a recurrent Perceiver, trained by backpropagation through the parts.
"""

from collections.abc import Iterable, Iterator

import torch

from perceiver_model.families.classifier import PerceiverClassifier

StreamChunk = torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]
"""A part of a stream: inputs, or inputs and their mask."""


def read_stream(
    model: PerceiverClassifier,
    parts: Iterable[StreamChunk],
    *,
    state: torch.Tensor | None = None,
    detach_every: int | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The logits `[batch, num_classes]` and the state after each part, as the parts come.

    Args:
        parts: of a batch of streams, each as of the model's `forward`.
        state: latents `[batch, num_latents, latent_dim]` that an earlier reading ended with; None
            for the learned ones.
        detach_every: cut the graph after that many parts, so that gradients reach no further back
            and memory doesn't grow with the stream (truncated backpropagation: call `backward`
            before the next part). None never cuts it: then memory grows unless gradients are off.

    Raises ValueError for a `detach_every` that is not positive, and as the model does.
    """
    if detach_every is not None and detach_every < 1:
        raise ValueError(f"detach_every {detach_every}: must be at least 1, or None")
    for count, part in enumerate(parts, start=1):
        inputs, mask = part if isinstance(part, tuple) else (part, None)
        logits, state = model.forward_state(inputs, mask, state=state)
        if detach_every is not None and count % detach_every == 0:
            state = state.detach()
        yield logits, state
