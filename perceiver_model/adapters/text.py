"""Text as tokens: the ids of UTF-8 bytes and their learned embeddings.

The ids are those of DeepMind's byte tokenizer: six special tokens, then byte b as b + 6.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from perceiver_model.adapters.checks import Tokens, check_mask
from perceiver_model.adapters.configs import TextInput, TokenEmbeddingConfig
from perceiver_model.adapters.text_config import BYTE_VOCAB_SIZE

PAD, BOS, EOS, MASK, CLS, SEP = range(6)
"""The ids of the special tokens."""

NUM_SPECIAL = 6
"""The number of special tokens. They have the ids below it; byte b has the id b + NUM_SPECIAL."""

_HASH_BASE, _HASH_FACTOR, _HASH_SHIFT = 0x10001F, 0x1E3779B97F4A7C15, 24
"""An odd base, the odd factor of Fibonacci hashing below 2⁶³, and the low bits that are dropped."""


def encode_bytes(text: str | bytes) -> torch.Tensor:
    """Return the ids of a text's UTF-8 bytes, int64 `[length]`, without special tokens."""
    data = text.encode() if isinstance(text, str) else text
    return torch.tensor(list(data), dtype=torch.long) + NUM_SPECIAL


def decode_bytes(ids: torch.Tensor | Sequence[int]) -> str:
    """Return the text of token ids.

    Special tokens are left out, and bytes that are not UTF-8 are replaced.

    Args:
        ids: The token ids `[length]`.

    Raises:
        ValueError: If an id is neither a byte nor a special token.
    """
    values = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
    if wrong := [value for value in values if not 0 <= value < BYTE_VOCAB_SIZE]:
        raise ValueError(f"token id {wrong[0]}: must be at least 0 and below {BYTE_VOCAB_SIZE}")
    data = bytes(value - NUM_SPECIAL for value in values if value >= NUM_SPECIAL)
    return data.decode(errors="replace")


def pad_tokens(sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sequences of different lengths with PAD to one batch.

    Args:
        sequences: The token ids of each text, `[length]`.

    Returns:
        The ids `[batch, length]`, and a bool mask `[batch, length]`, True where a sequence has
        tokens.
    """
    ids = pad_sequence(list(sequences), batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=ids.device)
    return ids, torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)


def ngram_buckets(ids: torch.Tensor, length: int, num_buckets: int) -> torch.Tensor:
    """Return a number for the n-gram that ends at each token, a hash of its ids.

    The hash is a polynomial in the ids modulo 2⁶⁴, whose upper bits are taken. Before the first
    token there is padding.

    Args:
        ids: The token ids, int64 or int32 `[batch, tokens]`.
        length: The number of tokens of an n-gram.
        num_buckets: The number of different results.

    Returns:
        int64 `[batch, tokens]`, at least 0 and below `num_buckets`.
    """
    padded = F.pad(ids.long(), (length - 1, 0), value=PAD)
    code = torch.zeros_like(ids, dtype=torch.long)
    for offset in range(length):
        code = code * _HASH_BASE + padded[:, offset : offset + ids.shape[1]] + 1
    return ((code * _HASH_FACTOR) >> _HASH_SHIFT) % num_buckets


class TokenAdapter(nn.Module):
    """One token per id: the embedding of the id plus that of its position (IO, section 4.1)."""

    def __init__(self, text: TextInput, embedding: TokenEmbeddingConfig) -> None:
        super().__init__()
        self.max_length = text.max_length
        self.embedding = nn.Embedding(text.vocab_size, embedding.num_channels)
        self.positions = nn.Parameter(torch.empty(text.max_length, embedding.num_channels))
        for parameter in (self.embedding.weight, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02, a=-2.0, b=2.0)
        self.ngrams, self.num_buckets = embedding.ngrams, embedding.num_buckets
        self.ngram_embedding = None
        if self.ngrams:
            rows = len(self.ngrams) * self.num_buckets
            self.ngram_embedding = nn.Embedding(rows, embedding.num_channels)
            nn.init.trunc_normal_(self.ngram_embedding.weight, std=0.02, a=-2.0, b=2.0)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, length, num_channels]` and the token mask.

        Args:
            ids: The token ids, int64 or int32 `[batch, length]`, at most `max_length` long. torch
                raises an error for an id outside the vocabulary.
            mask: The valid tokens, bool `[batch, length]`, or None if all are valid.

        Raises:
            ValueError: If a shape or a dtype is wrong.
        """
        self._check(ids, mask)
        if mask is not None:
            ids = ids.masked_fill(~mask, PAD)
        content = self.embedding(ids) + self.positions[: ids.shape[1]]
        if self.ngram_embedding is not None:
            for index, length in enumerate(self.ngrams):
                buckets = ngram_buckets(ids, length, self.num_buckets)
                content = content + self.ngram_embedding(buckets + index * self.num_buckets)
        return content, mask

    def _check(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.max_length:
            raise ValueError(
                f"inputs of shape {list(ids.shape)}: expected [batch, length], with a length of 1 "
                f"to {self.max_length}"
            )
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"inputs of dtype {ids.dtype}: expected torch.int64 or torch.int32")
        check_mask(mask, ids.shape)
