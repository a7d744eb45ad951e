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
"""The target of a position that the loss ignores."""


class MaskedLanguageModel(nn.Module):
    """A masked language model. A learned query per position reads the logits from the latents.

    The logits are products with the token embeddings, plus a learned bias. The embeddings are
    therefore weights of the input and of the output.
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
        """Return the tokens that the encoder reads. The arguments are those of `forward`."""
        content, token_mask = self.adapter(ids, mask)
        return InputArray(content, mask=token_mask)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits `[batch, length, vocab_size]`.

        The logits are float32, or float64 for a float64 model.

        Args:
            ids: The token ids, int64 or int32 `[batch, length]`, of any length up to `max_length`.
            mask: The valid tokens, bool `[batch, length]`, or None if all are valid. Logits at
                other positions have no meaning.

        Raises:
            ValueError: If a shape or a dtype is wrong.
        """
        latents = self.encoder(self.input_array(ids, mask))
        decoded = self.decoder(self.queries[: ids.shape[1]].unsqueeze(0), latents)
        logits = F.linear(decoded, self.adapter.embedding.weight, self.bias)
        return logits if logits.dtype == torch.float64 else logits.float()


def masked_language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over the targets that are not IGNORED; 0 without any.

    Args:
        logits: The logits `[batch, length, vocab_size]`.
        targets: The targets, int64 `[batch, length]`.
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
    uniform: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask token ids as BERT does.

    Tokens are chosen with `probability`. Of the chosen tokens, 80 % become MASK, 10 % become a
    random token and 10 % stay unchanged. Special tokens and tokens whose `mask` is False are never
    chosen.

    Args:
        ids: The token ids `[batch, length]`.
        mask: The valid tokens, bool `[batch, length]`, or None if all are valid.
        probability: The probability that a token is chosen.
        whole_words: Whether to choose all bytes of a word, and the space before it, together. A
            byte is easy to guess from the rest of its word. All bytes of a word are treated alike.
        vocab_size: The number of token ids.
        generator: The random generator, on the device of the ids.
        uniform: Random numbers in [0, 1) to use instead of the generator's, floating-point
            `[3, batch, length]`.

    Returns:
        The ids for the model to read, and the targets, int64 `[batch, length]`, which are IGNORED
        where no token was chosen.
    """
    if uniform is None:
        uniform = torch.rand(3, *ids.shape, generator=generator, device=ids.device)
    words = _word_indices(ids) if whole_words else torch.arange(ids.shape[1], device=ids.device)
    words = words.expand_as(ids)

    of_choice, of_fate, of_token = uniform
    chosen = (of_choice.gather(1, words) < probability) & (ids >= NUM_SPECIAL)
    if mask is not None:
        chosen &= mask
    fate = of_fate.gather(1, words)
    random_ids = NUM_SPECIAL + (of_token * (vocab_size - NUM_SPECIAL)).long()
    read = torch.where(chosen & (fate < 0.8), MASK, ids)
    read = torch.where(chosen & (fate >= 0.9), random_ids.to(ids.dtype), read)
    return read, torch.where(chosen, ids, IGNORED).long()


def _word_indices(ids: torch.Tensor) -> torch.Tensor:
    """Return the index of each token's word, counted from 0.

    A word starts at a space or at a special token.
    """
    starts = (ids == ord(" ") + NUM_SPECIAL) | (ids < NUM_SPECIAL)
    starts[:, 0] = False
    return starts.long().cumsum(dim=1)
