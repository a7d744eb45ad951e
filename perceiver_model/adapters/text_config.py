"""Text as an input, as token ids: configuration, free of torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import FORBID_EXTRA, check_positive_integers

BYTE_VOCAB_SIZE = 262
"""Six special tokens and 256 bytes (IO, section 4.1; DeepMind's byte tokenizer)."""


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """Token ids `[batch, length]`, int64 or int32, of any length up to `max_length`.

    Attributes:
        kind: must be `text`.
        max_length: the longest text, in tokens, at least 1.
        vocab_size: ids are at least 0 and below this number. The default is that of `encode_bytes`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["text"] = "text"
    max_length: int
    vocab_size: int = BYTE_VOCAB_SIZE

    def __post_init__(self) -> None:
        check_positive_integers(self, "max_length", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class TokenEmbedding(AdapterBase):
    """One token per id: its learned embedding plus the learned vector of its position.

    Attributes:
        kind: must be `token_embedding`.
        num_channels: channels of both learned vectors and so of a token, at least 1.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (TextInput,)
    holds_positions = True

    kind: Literal["token_embedding"] = "token_embedding"
    num_channels: int = 768

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_channels")

    def token_grid(self, text: TextInput) -> tuple[int, ...]:
        """The tokens of the longest text."""
        return (text.max_length,)

    def content_channels(self, text: TextInput) -> int:
        """The embedding's channels."""
        return self.num_channels
