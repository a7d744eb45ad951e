"""The configuration of a Perceiver AR and its FLOPs. It does not import torch."""

from typing import Annotated, Literal

from pydantic import Field

from perceiver_model.adapters.text_config import BYTE_VOCAB_SIZE
from perceiver_model.config_checks import (
    KEEP_INTEGERS,
    Count,
    DropProbability,
    check_multiple,
    config_dataclass,
    refusal,
)
from perceiver_model.config_tree import ConfigTree
from perceiver_model.layer_flops import cross_attend_flops, matmul_flops, self_attend_flops


@config_dataclass
class ARSize:
    """The size and the layers of a Perceiver AR (arXiv 2202.07765, appendix C).

    The defaults are those of its released code.

    Attributes:
        num_latents: The number of latents, which are the last positions of the context. Each one
            predicts the token after it.
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
            token, the fastest by 1 radian. None means the length of the context.
        tied_logits: Whether the logits are products with the token embeddings, divided by
            √channels.
        dropout: The probability of dropout after every attention and MLP.
        context_dropout: The probability, in training, that the cross-attend does not see a token.
    """

    num_latents: Count = 1024
    channels: Count = 1024
    num_self_attends: Count = 12
    num_heads: Count = 16
    widening: Count = 4
    activation: Literal["squared_relu", "gelu_tanh", "gelu_erf"] = "squared_relu"
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_fraction: Annotated[float, Field(gt=0, le=1), KEEP_INTEGERS] = 0.5
    max_wavelength: Annotated[float, Field(gt=1), KEEP_INTEGERS] | None = None
    tied_logits: bool = False
    dropout: DropProbability = 0.1
    context_dropout: DropProbability = 0.0


@config_dataclass
class ARConfig(ARSize, ConfigTree):
    """A Perceiver AR, with its vocabulary and the length of its context.

    Attributes:
        kind: Must be `autoregressive`, or be left out.
        vocab_size: The number of token ids. The default is the vocabulary of `encode_bytes`.
        max_length: The largest number of tokens in a context.
    """

    kind: Literal["autoregressive"] = "autoregressive"
    vocab_size: Count = BYTE_VOCAB_SIZE
    max_length: Count = 8192

    def __post_init__(self) -> None:
        if self.num_latents > self.max_length:
            raise refusal(self, "num_latents", f"at most max_length = {self.max_length}")
        check_multiple(self, "channels", "num_heads")
        if self.positions == "rotary" and self.rotated_channels == 0:
            allowed = f"enough for 2 of the heads' {self.head_width} channels"
            raise refusal(self, "rotary_fraction", allowed)

    @property
    def head_width(self) -> int:
        """The number of channels of a head."""
        return self.channels // self.num_heads

    @property
    def rotated_channels(self) -> int:
        """The number of channels of a head that rotary positions rotate; it is even."""
        return int(self.head_width * self.rotary_fraction) // 2 * 2


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
