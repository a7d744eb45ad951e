"""The configurations of a Perceiver's parts: frozen dataclasses without torch.

Each configuration is checked when it is built. A failed check raises a `ValueError` that names the
field, its value and the allowed values. A pydantic model can contain the classes.
"""

from typing import Literal

from perceiver_model.config_checks import (
    Count,
    DropProbability,
    PositiveNumber,
    check_length,
    check_multiple,
    config_dataclass,
    refusal,
)


@config_dataclass
class FourierConfig:
    """Fourier position features (paper, section 3.2).

    Attributes:
        kind: Must be `fourier`, or be left out.
        num_bands: The number of frequencies per dimension of the token grid, at least 1. Each gives
            a sine and a cosine.
        max_resolution: The resolution of each dimension of the token grid, above 0. Its Nyquist
            frequency is the highest band. None means the grid's own shape.
        precision: The precision of the arithmetic. The port in transformers computes in float32.
    """

    kind: Literal["fourier"] = "fourier"
    num_bands: Count = 64
    max_resolution: tuple[PositiveNumber, ...] | None = None
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        if self.max_resolution is not None:
            check_length(self, "max_resolution", 1, 2, 3)


@config_dataclass
class LearnedPositions:
    """One learned vector per token, followed by a linear layer.

    Attributes:
        kind: Must be `learned`.
        num_channels: The number of channels of each learned vector, at least 1.
        projected_channels: The number of channels after the linear layer, at least 1. None means no
            linear layer.
    """

    kind: Literal["learned"] = "learned"
    num_channels: Count = 256
    projected_channels: Count | None = 256


PositionConfig = FourierConfig | LearnedPositions
"""The configuration of position features."""


@config_dataclass
class EncoderConfig:
    """The latents, cross-attends and latent blocks. The defaults are the paper's for ImageNet.

    Attributes:
        num_latents: The number of learned latents, at least 1.
        latent_dim: The number of channels of each latent, at least 1 and a multiple of
            `num_self_heads`.
        num_blocks: The number of latent blocks, at least 1.
        num_cross_attends: How often the latents read the input, at least 1. It is at most
            `num_blocks` with the layout `interleaved`.
        num_self_attends: The number of self-attends in each block, at least 1.
        num_cross_heads: The number of attention heads of each cross-attend, at least 1.
        num_self_heads: The number of attention heads of each self-attend, at least 1.
        cross_channels: The width of the queries and keys of a cross-attend, a multiple of
            `num_cross_heads`. None means the input's channels, which is DeepMind's choice.
        cross_value_channels: The width of the values of a cross-attend, a multiple of
            `num_cross_heads`. None means the width of its queries and keys.
        self_channels: The width of the queries and keys of a self-attend, a multiple of
            `num_self_heads`. None means `latent_dim`.
        self_value_channels: The width of the values of a self-attend, a multiple of
            `num_self_heads`. None means the width of its queries and keys.
        cross_widening: The hidden width of the MLP after a cross-attend, in multiples of
            `latent_dim`, at least 1.
        self_widening: The hidden width of the MLP after a self-attend, in multiples of
            `latent_dim`, at least 1.
        gelu: The GELU of the MLPs. `tanh` is the approximation by tanh, which is DeepMind's choice.
            `erf` is exact.
        share_cross_attends: Which cross-attends share weights. `after_first` is the paper's choice:
            the first cross-attend has its own weights, and all others share one set. `all` means
            one set of weights. `none` means a set for each.
        share_self_attends: Whether all blocks share weights, as in the paper.
        cross_attend_layout: `interleaved` spreads the cross-attends evenly over the blocks, with
            the first one before the first block. `first` puts them all before the first block.
        dropout: The probability of dropout after every attention and MLP, at least 0 and below 1.
        latent_init_std: The standard deviation of the truncated normal distribution from which the
            initial latents are drawn, above 0. The paper's 0.02 suits its scale. A small model
            breaks the symmetry of its latents sooner with a larger value.
    """

    num_latents: Count = 512
    latent_dim: Count = 1024
    num_blocks: Count = 8
    num_cross_attends: Count = 8
    num_self_attends: Count = 6
    num_cross_heads: Count = 1
    num_self_heads: Count = 8
    cross_channels: Count | None = None
    cross_value_channels: Count | None = None
    self_channels: Count | None = None
    self_value_channels: Count | None = None
    cross_widening: Count = 1
    self_widening: Count = 1
    gelu: Literal["tanh", "erf"] = "tanh"
    share_cross_attends: Literal["all", "after_first", "none"] = "after_first"
    share_self_attends: bool = True
    cross_attend_layout: Literal["interleaved", "first"] = "interleaved"
    dropout: DropProbability = 0.0
    latent_init_std: PositiveNumber = 0.02

    def __post_init__(self) -> None:
        if self.cross_attend_layout == "interleaved" and self.num_cross_attends > self.num_blocks:
            raise refusal(self, "num_cross_attends", f"at most num_blocks = {self.num_blocks}")
        if self.self_channels is None:
            check_multiple(self, "latent_dim", "num_self_heads")
        check_multiple(self, "self_channels", "num_self_heads")
        check_multiple(self, "self_value_channels", "num_self_heads")
        check_multiple(self, "cross_channels", "num_cross_heads")
        check_multiple(self, "cross_value_channels", "num_cross_heads")

    @property
    def cross_attends_before_block(self) -> tuple[int, ...]:
        """The number of cross-attends right before each block; the sum is `num_cross_attends`."""
        if self.cross_attend_layout == "first":
            return (self.num_cross_attends,) + (0,) * (self.num_blocks - 1)
        counts = [0] * self.num_blocks
        for index in range(self.num_cross_attends):
            counts[index * self.num_blocks // self.num_cross_attends] = 1
        return tuple(counts)


@config_dataclass
class DecoderConfig:
    """Perceiver IO's decoder: a cross-attend from output queries to the latents (IO, section 3.2).

    Attributes:
        num_heads: The number of attention heads, at least 1.
        qk_channels: The width of the queries and keys, a multiple of `num_heads`. None means the
            latents' channels, which is DeepMind's choice.
        value_channels: The width of the values, a multiple of `num_heads`. None means the width of
            the queries and keys.
        widening: The hidden width of the MLP, in multiples of the queries' channels, at least 1.
        query_residual: Whether the output queries are added to the result of the attention.
        gelu: The GELU of the MLP. `tanh` is the approximation by tanh. `erf` is exact.
        dropout: The probability of dropout after the attention and the MLP, at least 0 and below 1.
    """

    num_heads: Count = 1
    qk_channels: Count | None = None
    value_channels: Count | None = None
    widening: Count = 1
    query_residual: bool = True
    gelu: Literal["tanh", "erf"] = "tanh"
    dropout: DropProbability = 0.0

    def __post_init__(self) -> None:
        check_multiple(self, "qk_channels", "num_heads")
        check_multiple(self, "value_channels", "num_heads")
