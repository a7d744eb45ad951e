"""The configuration of a Perceiver AR and its FLOPs. It does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from perceiver_model.adapters.text_config import BYTE_VOCAB_SIZE
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_integers,
    check_multiple,
    check_number,
    check_one_of,
    read_config,
    refusal,
    write_config,
)
from perceiver_model.layer_flops import cross_attend_flops, matmul_flops, self_attend_flops


@dataclass(frozen=True, kw_only=True)
class ARConfig:
    """A Perceiver AR (arXiv 2202.07765, appendix C).

    The defaults are those of its released code, except for the vocabulary of bytes and contexts of
    8,192 tokens.

    Attributes:
        kind: Must be `autoregressive`, or be left out.
        vocab_size: The number of token ids. The default is the vocabulary of `encode_bytes`.
        max_length: The largest number of tokens in a context.
        num_latents: The number of latents, which are the last positions of the context.
        channels: The width of tokens and latents, and of queries, keys and values over all heads.
        num_self_attends: The number of causal self-attends after the cross-attend.
        num_heads: The number of heads of the cross-attend and of every self-attend.
        widening: The hidden width of the MLPs, in multiples of `channels`.
        activation: The activation of the MLPs. `gelu_tanh` is GELU with its tanh approximation,
            `gelu_erf` is exact GELU.
        positions: `rotary` rotates queries and keys by their position. `learned` adds a learned
            vector for each position to the token's embedding.
        rotary_fraction: The fraction of each head's channels that are rotated, rounded down to an
            even number of channels, from the first on. The other channels compare content
            regardless of its position.
        max_wavelength: The slowest pair of channels rotates by 1 / max_wavelength radians per
            token, the fastest by 1 radian. None means `max_length`.
        tied_logits: Whether the logits are products with the token embeddings, divided by
            √channels.
        dropout: The probability of dropout after every attention and MLP.
        context_dropout: The probability, in training, that the cross-attend does not see a token.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["autoregressive"] = "autoregressive"
    vocab_size: int = BYTE_VOCAB_SIZE
    max_length: int = 8192
    num_latents: int = 1024
    channels: int = 1024
    num_self_attends: int = 12
    num_heads: int = 16
    widening: int = 4
    activation: Literal["squared_relu", "gelu_tanh", "gelu_erf"] = "squared_relu"
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_fraction: float = 0.5
    max_wavelength: float | None = None
    tied_logits: bool = False
    dropout: float = 0.1
    context_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_one_of(self, "kind", "autoregressive")
        check_integers(
            self,
            *("vocab_size", "max_length", "num_latents", "channels", "num_self_attends"),
            *("num_heads", "widening"),
        )
        if self.num_latents > self.max_length:
            raise refusal(self, "num_latents", f"at most max_length = {self.max_length}")
        check_multiple(self, "channels", "num_heads")
        check_one_of(self, "activation", "squared_relu", "gelu_tanh", "gelu_erf")
        check_one_of(self, "positions", "rotary", "learned")
        fraction = self.rotary_fraction
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise refusal(self, "rotary_fraction", "above 0 and at most 1")
        if self.positions == "rotary" and self.rotated_channels == 0:
            allowed = f"enough for 2 of the heads' {self.head_width} channels"
            raise refusal(self, "rotary_fraction", allowed)
        if self.max_wavelength is not None:
            check_number(self, "max_wavelength", above=1)
        check_one_of(self, "tied_logits", True, False)
        check_number(self, "dropout", least=0, below=1)
        check_number(self, "context_dropout", least=0, below=1)

    @property
    def head_width(self) -> int:
        """The number of channels of a head."""
        return self.channels // self.num_heads

    @property
    def rotated_channels(self) -> int:
        """The number of channels of a head that rotary positions rotate; it is even."""
        return int(self.head_width * self.rotary_fraction) // 2 * 2

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration in JSON's types; `from_dict` reads them."""
        return write_config(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a mapping that `to_dict` wrote.

        Raises:
            ValueError: If a key is unknown or missing, or a value is not allowed.
        """
        return read_config(cls, values)


def autoregressive_flops(
    config: ARConfig, *, length: int | None = None, num_latents: int | None = None
) -> int:
    """Return the FLOPs of one forward pass of one sequence, counted as `layer_flops` explains.

    Causal attention counts in full, although its masked part could be skipped.

    Args:
        config: The configuration of the model.
        length: The number of tokens in the context. None means `max_length`.
        num_latents: The number of latents, as in `PerceiverAR.forward`.
    """
    length = config.max_length if length is None else length
    latents = min(num_latents or config.num_latents, length)
    channels = config.channels
    cross_attend = cross_attend_flops(
        queries=latents,
        query_channels=channels,
        tokens=length,
        input_channels=channels,
        widening=config.widening,
    )
    self_attend = self_attend_flops(tokens=latents, channels=channels, widening=config.widening)
    logits = matmul_flops(latents, channels, config.vocab_size)
    return cross_attend + config.num_self_attends * self_attend + logits
