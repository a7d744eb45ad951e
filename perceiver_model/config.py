"""The configurations of a Perceiver's parts: frozen dataclasses without torch.

Each configuration is checked when it is built. A failed check raises a `ValueError` that names the
field, its value and the allowed values. The classes carry `__pydantic_config__`, so that a pydantic
model can contain them and still refuse unknown keys.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_integers,
    check_multiple,
    check_number,
    check_numbers,
    check_one_of,
    refusal,
)


@dataclass(frozen=True, kw_only=True)
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

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["fourier"] = "fourier"
    num_bands: int = 64
    max_resolution: tuple[float, ...] | None = None
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        check_integers(self, "num_bands")
        check_one_of(self, "precision", "float64", "float32")
        if self.max_resolution is not None:
            check_numbers(self, "max_resolution", (1, 2, 3), above=0)


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    """One learned vector per token, followed by a linear layer.

    Attributes:
        kind: Must be `learned`.
        num_channels: The number of channels of each learned vector, at least 1.
        projected_channels: The number of channels after the linear layer, at least 1. None means no
            linear layer.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["learned"] = "learned"
    num_channels: int = 256
    projected_channels: int | None = 256

    def __post_init__(self) -> None:
        check_integers(self, "num_channels")
        if self.projected_channels is not None:
            check_integers(self, "projected_channels")


PositionConfig = FourierConfig | LearnedPositions
"""The configuration of position features."""


@dataclass(frozen=True, kw_only=True)
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

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    num_latents: int = 512
    latent_dim: int = 1024
    num_blocks: int = 8
    num_cross_attends: int = 8
    num_self_attends: int = 6
    num_cross_heads: int = 1
    num_self_heads: int = 8
    cross_channels: int | None = None
    cross_value_channels: int | None = None
    self_channels: int | None = None
    self_value_channels: int | None = None
    cross_widening: int = 1
    self_widening: int = 1
    gelu: Literal["tanh", "erf"] = "tanh"
    share_cross_attends: Literal["all", "after_first", "none"] = "after_first"
    share_self_attends: bool = True
    cross_attend_layout: Literal["interleaved", "first"] = "interleaved"
    dropout: float = 0.0
    latent_init_std: float = 0.02

    def __post_init__(self) -> None:
        check_integers(
            self,
            *("num_latents", "latent_dim", "num_blocks", "num_cross_attends", "num_self_attends"),
            *("num_cross_heads", "num_self_heads", "cross_widening", "self_widening"),
        )
        check_one_of(self, "share_cross_attends", "all", "after_first", "none")
        check_one_of(self, "share_self_attends", True, False)
        check_one_of(self, "cross_attend_layout", "interleaved", "first")
        if self.cross_attend_layout == "interleaved" and self.num_cross_attends > self.num_blocks:
            raise refusal(self, "num_cross_attends", f"at most num_blocks = {self.num_blocks}")
        if self.self_channels is None:
            check_multiple(self, "latent_dim", "num_self_heads")
        check_multiple(self, "self_channels", "num_self_heads")
        check_multiple(self, "self_value_channels", "num_self_heads")
        check_multiple(self, "cross_channels", "num_cross_heads")
        check_multiple(self, "cross_value_channels", "num_cross_heads")
        check_one_of(self, "gelu", "tanh", "erf")
        check_number(self, "dropout", least=0, below=1)
        check_number(self, "latent_init_std", above=0)

    @property
    def cross_attends_before_block(self) -> tuple[int, ...]:
        """The number of cross-attends right before each block; the sum is `num_cross_attends`."""
        if self.cross_attend_layout == "first":
            return (self.num_cross_attends,) + (0,) * (self.num_blocks - 1)
        counts = [0] * self.num_blocks
        for index in range(self.num_cross_attends):
            counts[index * self.num_blocks // self.num_cross_attends] = 1
        return tuple(counts)


@dataclass(frozen=True, kw_only=True)
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

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    num_heads: int = 1
    qk_channels: int | None = None
    value_channels: int | None = None
    widening: int = 1
    query_residual: bool = True
    gelu: Literal["tanh", "erf"] = "tanh"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_integers(self, "num_heads", "widening")
        check_multiple(self, "qk_channels", "num_heads")
        check_multiple(self, "value_channels", "num_heads")
        check_one_of(self, "query_residual", True, False)
        check_one_of(self, "gelu", "tanh", "erf")
        check_number(self, "dropout", least=0, below=1)
