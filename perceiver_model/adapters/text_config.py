"""The configuration of text as token ids. It does not import torch."""

from typing import Annotated, Literal

from pydantic import Field

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import Count, config_dataclass, refusal

LONGEST_NGRAM = 16
BYTE_VOCAB_SIZE = 262
"""The 6 special tokens and 256 bytes of DeepMind's byte tokenizer (IO, section 4.1)."""


@config_dataclass
class TextInput:
    """Token ids `[batch, length]`, int64 or int32, of any length up to `max_length`.

    Attributes:
        kind: Must be `text`.
        max_length: The number of tokens in the longest text, at least 1.
        vocab_size: The number of token ids, at least 1. Ids are at least 0 and below it. The
            default is the vocabulary of `encode_bytes`.
    """

    kind: Literal["text"] = "text"
    max_length: Count
    vocab_size: Count = BYTE_VOCAB_SIZE


@config_dataclass
class TokenEmbeddingConfig(AdapterBase):
    """One token per id: the learned embedding of the id plus the learned vector of its position.

    With `ngrams`, a token also gets the learned vectors of the n-grams that end at it, which are
    numbered by a hash (Pagnoni et al., arXiv 2412.09871). Words and their parts are then known from
    the first cross-attend on, so that a few thousand texts suffice to learn what they say. The
    vector of a token then depends on the tokens before it.

    Attributes:
        kind: Must be `token_embedding`.
        num_channels: The number of channels of both learned vectors and of a token, at least 1.
        ngrams: The lengths of the n-grams, from 2 to 16 and rising; empty for none.
        num_buckets: The number of learned vectors for the n-grams of each length, at least 2. Those
            with the same hash share one.
    """

    reads = (TextInput,)
    holds_positions = True

    kind: Literal["token_embedding"] = "token_embedding"
    num_channels: Count = 768
    ngrams: tuple[Annotated[int, Field(ge=2, le=LONGEST_NGRAM)], ...] = ()
    num_buckets: Annotated[int, Field(ge=2)] = 16_384

    def __post_init__(self) -> None:
        if list(self.ngrams) != sorted(set(self.ngrams)):
            raise refusal(self, "ngrams", "rising integers")

    def token_grid(self, text: TextInput) -> tuple[int, ...]:
        """Return the number of tokens of the longest text, `(max_length,)`."""
        return (text.max_length,)

    def content_channels(self, text: TextInput) -> int:
        """Return the number of channels of the embedding."""
        return self.num_channels
