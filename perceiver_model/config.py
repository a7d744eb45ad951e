"""The parts of a Perceiver: frozen dataclasses, checked once, free of torch.

Every check raises a `ValueError` that names the field, its value and what is allowed. The classes
carry `__pydantic_config__`, so that a pydantic model may nest them and refuse unknown keys.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_multiple,
    check_number,
    check_numbers,
    check_one_of,
    check_positive_integers,
    check_probability,
    refusal,
)


@dataclass(frozen=True, kw_only=True)
class FourierConfig:
    """Fourier position features (paper, section 3.2).

    `max_resolution` holds, for every dimension of the token grid, the resolution whose Nyquist
    frequency is the highest band; None takes the grid's own shape. `precision` is that of the
    arithmetic; transformers' is float32.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["fourier"] = "fourier"
    num_bands: int = 64
    max_resolution: tuple[float, ...] | None = None
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_bands")
        check_one_of(self, "precision", "float64", "float32")
        if self.max_resolution is not None:
            check_numbers(self, "max_resolution", (1, 2, 3), above=0)


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    """One learned vector for every token, of `num_channels` channels, then a linear layer.

    `projected_channels` is the width that the linear layer gives them; None leaves it out.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["learned"] = "learned"
    num_channels: int = 256
    projected_channels: int | None = 256

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_channels")
        if self.projected_channels is not None:
            check_positive_integers(self, "projected_channels")


PositionConfig = FourierConfig | LearnedPositions


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The Perceiver's latents, cross-attends and latent blocks; defaults are the paper's ImageNet.

    num_latents, latent_dim: shape of the learned latent array.
    num_blocks: latent blocks, each of `num_self_attends` self-attends.
    num_cross_attends: how often the latents read the input.
    cross_channels: width of queries and keys in a cross-attend; None is the input's channels,
        DeepMind's choice.
    cross_value_channels: width of its values; None is that of its queries and keys.
    self_channels, self_value_channels: the same for self-attends; None is `latent_dim`, and the
        width of queries and keys.
    cross_widening, self_widening: hidden width of the MLPs, in multiples of `latent_dim`.
    share_cross_attends: "after_first" is the paper's (the first has its own weights, the others
        share theirs); "all" is one set of weights; "none" is a set for each.
    share_self_attends: whether all blocks share weights, as in the paper.
    cross_attend_layout: "interleaved" spreads the cross-attends evenly over the blocks, the first
        before the first block; "first" puts them all before the first block.
    gelu: the MLPs' GELU, by its tanh approximation (DeepMind's) or exact.
    dropout: probability after every attention and MLP.
    latent_init_std: of the truncated normal that the initial latents are drawn from. The paper's
        0.02 suits its scale; small models break the latents' symmetry sooner with more.
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
        check_positive_integers(
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
        check_probability(self, "dropout")
        check_number(self, "latent_init_std", above=0)

    @property
    def cross_attends_before_block(self) -> tuple[int, ...]:
        """How many cross-attends come right before each block; sums to `num_cross_attends`."""
        if self.cross_attend_layout == "first":
            return (self.num_cross_attends,) + (0,) * (self.num_blocks - 1)
        counts = [0] * self.num_blocks
        for index in range(self.num_cross_attends):
            counts[index * self.num_blocks // self.num_cross_attends] = 1
        return tuple(counts)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Perceiver IO's decoder: one cross-attend from output queries to the latents (IO, 3.2).

    qk_channels: width of its queries and keys; None is the latents' channels, DeepMind's choice.
    value_channels: width of its values; None is `qk_channels`.
    widening: hidden width of its MLP, in multiples of the queries' channels.
    query_residual: whether the queries are added to what they read.
    gelu, dropout: as of the encoder.
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
        check_positive_integers(self, "num_heads", "widening")
        check_multiple(self, "qk_channels", "num_heads")
        check_multiple(self, "value_channels", "num_heads")
        check_one_of(self, "query_residual", True, False)
        check_one_of(self, "gelu", "tanh", "erf")
        check_probability(self, "dropout")
