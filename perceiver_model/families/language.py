"""Masked language modelling with Perceiver IO (IO, section 4.1): model, masking and loss."""

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.adapters.text import MASK, NUM_SPECIAL, TokenAdapter
from perceiver_model.attention.tokens import InputArray
from perceiver_model.decoder import PerceiverDecoder
from perceiver_model.families.language_config import LanguageConfig
from perceiver_model.perceiver import PerceiverEncoder

IGNORED = -100
"""The target of a position that the loss leaves out."""


class MaskedLanguageModel(nn.Module):
    """Logits for every token of a text, read from the latents by a learned query for each position.

    The logits are products with the token embeddings, which so are weights of both ends, plus a
    learned bias.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = TokenAdapter(config.input, config.adapter)
        self.encoder = PerceiverEncoder(config.encoder, input_channels=config.input_channels)
        self.queries = nn.Parameter(torch.empty(config.input.max_length, config.input_channels))
        nn.init.trunc_normal_(self.queries, std=0.02, a=-2.0, b=2.0)
        self.decoder = PerceiverDecoder(
            config.decoder,
            query_channels=config.input_channels,
            latent_dim=config.encoder.latent_dim,
            output_channels=None,
        )
        self.bias = nn.Parameter(torch.zeros(config.input.vocab_size))

    def input_array(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> InputArray:
        """The tokens that the encoder reads; arguments as of `forward`."""
        content, token_mask = self.adapter(ids, mask)
        return InputArray(content, mask=token_mask)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `[batch, length, vocab_size]`, float32 or, of a float64 model, float64.

        Args:
            ids: int64 or int32 `[batch, length]`, of any length up to `max_length`.
            mask: bool `[batch, length]`, True where a text has tokens; None for everywhere. Logits
                at other places are of no meaning.

        Raises ValueError for ids or masks of another shape or dtype.
        """
        latents = self.encoder(self.input_array(ids, mask))
        decoded = self.decoder(self.queries[: ids.shape[1]].unsqueeze(0), latents)
        logits = F.linear(decoded, self.adapter.embedding.weight, self.bias)
        return logits if logits.dtype == torch.float64 else logits.float()


def masked_language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy over the places whose target isn't IGNORED; 0 if there are none.

    logits `[batch, length, vocab_size]`; targets int64 `[batch, length]`.
    """
    total = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (targets != IGNORED).sum().clamp(min=1)


def mask_tokens(
    ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    probability: float = 0.15,
    whole_words: bool = True,
    vocab_size: int,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's masking of ids `[batch, length]`: what the model reads, and what it should say.

    Tokens are chosen with `probability`; of the chosen, 80 % become MASK, 10 % a random token, 10 %
    stay as they are. Special tokens, and those where `mask` is False, are never chosen.

    Args:
        whole_words: choose the bytes of a word, with the space before it, together: a byte is easy
            to guess from the rest of its word. A word's bytes share their fate.
        generator: on the ids' device.

    Returns the ids, and targets int64 `[batch, length]` that are IGNORED where none were chosen.
    """
    words = _word_indices(ids) if whole_words else torch.arange(ids.shape[1], device=ids.device)
    words = words.expand_as(ids)

    def draw() -> torch.Tensor:
        """A uniform number for each word, at each of its tokens."""
        return torch.rand(ids.shape, generator=generator, device=ids.device).gather(1, words)

    chosen = (draw() < probability) & (ids >= NUM_SPECIAL)
    if mask is not None:
        chosen &= mask
    fate = draw()
    random_ids = torch.randint(
        NUM_SPECIAL, vocab_size, ids.shape, generator=generator, device=ids.device
    )
    read = torch.where(chosen & (fate < 0.8), MASK, ids)
    read = torch.where(chosen & (fate >= 0.9), random_ids.to(ids.dtype), read)
    return read, torch.where(chosen, ids, IGNORED).long()


def _word_indices(ids: torch.Tensor) -> torch.Tensor:
    """Which word each token is in, counted from 0: a word starts at a space or a special token."""
    starts = (ids == ord(" ") + NUM_SPECIAL) | (ids < NUM_SPECIAL)
    starts[:, 0] = False
    return starts.long().cumsum(dim=1)
