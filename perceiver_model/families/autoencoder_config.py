"""Several modalities in, several out (IO, section 4.3): configuration, free of torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, PositionConfig
from perceiver_model.config_checks import (
    FORBID_EXTRA,
    check_numbers,
    check_one_of,
    check_positive_integers,
    refusal,
    write_config,
)
from perceiver_model.config_tree import read_tree
from perceiver_model.tokens_config import check_cross_heads, check_decoder_heads, position_channels


@dataclass(frozen=True, kw_only=True)
class GridOutput:
    """A grid of outputs `[batch, *grid, num_channels]`, asked for by position.

    A video's grid is (frames, height, width), a sound's (chunks,) of `num_channels` samples.

    Attributes:
        spacing: where the positions lie, see `fourier.Spacing`. DeepMind's released code asks for
            outputs by number and so uses "steps".
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["grid"] = "grid"
    grid: tuple[int, ...]
    num_channels: int
    positions: PositionConfig = FourierConfig()
    spacing: Literal["ends", "steps"] = "steps"

    def __post_init__(self) -> None:
        if not self.grid or not all(isinstance(size, int) and size > 0 for size in self.grid):
            raise refusal(self, "grid", "a tuple of integers of at least 1")
        check_positive_integers(self, "num_channels")
        if isinstance(self.positions, FourierConfig) and self.positions.max_resolution is not None:
            check_numbers(self.positions, "max_resolution", (len(self.grid),), above=0)
        check_one_of(self, "spacing", "ends", "steps")

    @property
    def num_outputs(self) -> int:
        """Elements of the grid."""
        return math.prod(self.grid)

    @property
    def query_channels(self) -> int:
        """Channels of its queries, before they are padded to the common width."""
        return position_channels(self.positions, len(self.grid))


@dataclass(frozen=True, kw_only=True)
class VectorOutput:
    """A single output `[batch, num_channels]`, such as the logits of classes.

    Attributes:
        query_channels: of its learned query, before it is padded to the common width.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["vector"] = "vector"
    num_channels: int
    query_channels: int = 1024

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_channels", "query_channels")

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Modalities → one input array → encoder → one decoder, asked for every modality or task.

    Attributes:
        outputs: by name; they need not be the inputs' names.
        query_embedding_channels: by how much output queries are wider than the widest output's own;
            what is left over holds a vector learned for the output.
        decoded_channels: of every output before its own linear layer.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    input: MultimodalInput
    adapter: PaddedModalities = PaddedModalities()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig(query_residual=False)
    outputs: Mapping[str, GridOutput | VectorOutput]
    query_embedding_channels: int = 2
    decoded_channels: int = 512

    def __post_init__(self) -> None:
        if not self.outputs or not all(name.isidentifier() for name in self.outputs):
            raise refusal(self, "outputs", "a mapping from identifiers, with at least one")
        check_positive_integers(self, "query_embedding_channels", "decoded_channels")
        check_cross_heads(self.encoder, self.input_channels)
        check_decoder_heads(self.decoder, self.encoder)

    @property
    def num_tokens(self) -> int:
        """Tokens of all modalities."""
        return self.adapter.token_grid(self.input)[0]

    @property
    def input_channels(self) -> int:
        """Channels of a token."""
        return self.adapter.content_channels(self.input)

    @property
    def num_outputs(self) -> int:
        """Queries of all outputs."""
        return sum(output.num_outputs for output in self.outputs.values())

    @property
    def query_channels(self) -> int:
        """Channels of an output query."""
        widest = max(output.query_channels for output in self.outputs.values())
        return widest + self.query_embedding_channels

    def to_dict(self) -> dict[str, Any]:
        """The whole tree in JSON's types: `from_dict(json.loads(json.dumps(to_dict())))` is it."""
        return write_config(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote; raises ValueError for unknown or missing keys, bad values."""
        return read_tree(cls, values)
