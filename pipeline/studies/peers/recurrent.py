"""Models that read a stream of images part by part, and report what they saw some parts ago."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.multi_head import merge_heads, split_heads
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import DecoderConfig
from perceiver_model.decoder import PerceiverDecoder


class Recall(nn.Module):
    """A model of streams.

    Its `forward` takes images `[batch, height, width, channels]` and the state after the part
    before (None at the start), and returns logits `[batch, lags, classes]` and the state.
    """

    def detached(self, state: Any) -> Any:
        """Return a state without the graph that computed it."""
        return state.detach()


class CarriedLatents(Recall):
    """A Perceiver whose latents after one part are the start of the next.

    Args:
        classifier: The Perceiver classifier, whose head is taken away.
        num_lags: The number of output queries: one for each distance.
        num_classes: The number of classes.
    """

    def __init__(self, classifier: Any, num_lags: int, num_classes: int) -> None:
        super().__init__()
        classifier.head = nn.Identity()
        self.perceiver = classifier
        self.answers = Answers(classifier.config.encoder.latent_dim, num_lags, num_classes)

    def forward(self, images: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read a part: the latents attend to its pixels, and the output queries to the latents."""
        latents = self.perceiver.encoder(self.perceiver.input_array(images), state)
        return self.answers(latents), latents


class TruncatedContext(Recall):
    """A Perceiver that carries nothing, and reads the last parts again as one input.

    Args:
        classifier: The Perceiver classifier, whose head is taken away.
        num_lags: The number of output queries.
        num_classes: The number of classes.
        num_parts: The number of parts that it reads.
    """

    def __init__(self, classifier: Any, num_lags: int, num_classes: int, num_parts: int) -> None:
        super().__init__()
        self.carried = CarriedLatents(classifier, num_lags, num_classes)
        self.num_parts = num_parts
        self.ages = nn.Parameter(0.02 * torch.randn(num_parts, classifier.config.input_channels))

    def forward(self, images: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read the last parts. The state is their images, the newest last."""
        context = [*(state or []), images][-self.num_parts :]
        perceiver = self.carried.perceiver
        arrays = [perceiver.input_array(part).dense() for part in context]
        aged = [
            array + age for array, age in zip(reversed(arrays), self.ages, strict=False)
        ]  # the newest first
        latents = perceiver.encoder(InputArray(torch.cat(aged, dim=1)))
        return self.carried.answers(latents), context

    def detached(self, state: Any) -> Any:
        """Return the state: images have no graph."""
        return state


class Answers(nn.Module):
    """One learned output query for each distance, which reads the state (Perceiver IO)."""

    def __init__(self, dim: int, num_lags: int, num_classes: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(1, num_lags, dim))
        self.decoder = PerceiverDecoder(
            DecoderConfig(num_heads=4), query_channels=dim, latent_dim=dim,
            output_channels=num_classes,
        )  # fmt: skip

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, lags, classes]` of a state `[batch, vectors, dim]`."""
        logits: torch.Tensor = self.decoder(self.queries, state)
        return logits


class GRU(Recall):
    """torch's GRU over vectors of whole images, with a linear layer for each distance.

    Args:
        pixels: The pixels of an image, times its channels.
        num_lags: The number of distances.
        num_classes: The number of classes.
        dim: The channels of an image's vector.
        hidden: The hidden units.
    """

    def __init__(self, pixels: int, num_lags: int, num_classes: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(pixels, dim), nn.GELU(), nn.Linear(dim, dim))
        self.cell = nn.GRUCell(dim, hidden)
        self.head = nn.Linear(hidden, num_lags * num_classes)
        self.num_lags = num_lags

    def forward(self, images: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read a part. The state is the hidden units `[batch, hidden]`."""
        hidden = self.cell(self.embed(_scaled(images).flatten(1)), state)
        return self.head(hidden).unflatten(1, (self.num_lags, -1)), hidden


class SlotMemory(Recall):
    """A memory of slots, as in Memformer (Wu et al., arXiv 2010.06891).

    An encoder layer lets the tokens of a part attend to each other and read the slots. Then each
    slot attends to itself and the tokens, and not to other slots, and is divided by its length.
    What it keeps of itself is up to that attention: this is how it forgets.

    Args:
        grid: The height and the width of an image.
        channels: The channels of a pixel.
        num_lags: The number of distances.
        num_classes: The number of classes.
        dim: The channels of tokens and slots, a multiple of 4.
        hidden: The hidden width of the MLP.
        num_slots: The number of slots.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        channels: int,
        num_lags: int,
        num_classes: int,
        dim: int,
        hidden: int,
        num_slots: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], dim))
        self.start = nn.Parameter(torch.randn(1, num_slots, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.look, self.read = _Attention(dim), _Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.slot_query, self.slot_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.token_key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.answers = Answers(dim, num_lags, num_classes)

    def forward(self, images: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Read a part. The state is the slots `[batch, slots, dim]`."""
        slots = F.normalize(self.start, dim=-1).expand(len(images), -1, -1)
        slots = slots if state is None else state
        tokens = self.embed(_scaled(images).flatten(1, 2)) + self.positions
        normed = self.norms[0](tokens)
        tokens = tokens + self.look(normed, normed)
        tokens = tokens + self.read(self.norms[1](tokens), slots)
        tokens = self.norms[3](tokens + self.mlp(self.norms[2](tokens)))
        written = self._write(slots, tokens)
        return self.answers(torch.cat([written, tokens], dim=1)), written

    def _write(self, slots: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        scale = slots.shape[-1] ** -0.5
        queries = self.slot_query(slots) * scale
        own = (queries * self.slot_key(slots)).sum(dim=-1, keepdim=True)
        weights = torch.cat([own, queries @ self.token_key(tokens).mT], dim=-1).softmax(dim=-1)
        new = weights[..., :1] * slots + weights[..., 1:] @ self.value(tokens)
        return F.normalize(new, dim=-1)


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        q = split_heads(self.query(queries), 4)
        k, v = (split_heads(each, 4) for each in self.key_value(tokens).chunk(2, dim=-1))
        read: torch.Tensor = self.output(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return read


def _scaled(images: torch.Tensor) -> torch.Tensor:
    """Return pixels around 0."""
    return images.float() / 127.5 - 1
