"""The configuration of several input and output modalities (IO, section 4.3), without torch."""

import math
from collections.abc import Mapping
from typing import Literal

from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, PositionConfig
from perceiver_model.config_checks import Count, check_length, config_dataclass, refusal
from perceiver_model.config_tree import ConfigTree
from perceiver_model.tokens_config import check_cross_heads, check_decoder_heads, position_channels


@config_dataclass
class GridOutput:
    """A grid of outputs `[batch, *grid, num_channels]`, selected by position.

    A video's grid is (frames, height, width). A sound's grid is (chunks,), with `num_channels`
    samples per chunk.

    Attributes:
        kind: Must be `grid`.
        grid: The shape of the grid.
        num_channels: The number of channels of an output.
        positions: The position features of the queries.
        spacing: The spacing of the positions, see `fourier.Spacing`. DeepMind's released code
            selects outputs by index and so uses `steps`.
    """

    kind: Literal["grid"] = "grid"
    grid: tuple[Count, ...]
    num_channels: Count
    positions: PositionConfig = FourierConfig()
    spacing: Literal["ends", "steps"] = "steps"

    def __post_init__(self) -> None:
        if not self.grid:
            raise refusal(self, "grid", "a tuple of at least one integer")
        if isinstance(self.positions, FourierConfig) and self.positions.max_resolution is not None:
            check_length(self.positions, "max_resolution", len(self.grid))

    @property
    def num_outputs(self) -> int:
        """The number of elements of the grid."""
        return math.prod(self.grid)

    @property
    def query_channels(self) -> int:
        """The number of channels of a query before it is padded to the common width."""
        return position_channels(self.positions, len(self.grid))


@config_dataclass
class VectorOutput:
    """A single output `[batch, num_channels]`, such as the logits of classes.

    Attributes:
        kind: Must be `vector`.
        num_channels: The number of channels of the output.
        query_channels: The number of channels of its learned query before it is padded to the
            common width.
    """

    kind: Literal["vector"] = "vector"
    num_channels: Count
    query_channels: Count = 1024

    @property
    def num_outputs(self) -> int:
        """The number of queries, which is 1."""
        return 1


@config_dataclass
class AutoencoderConfig(ConfigTree):
    """Modalities → one input array → encoder → one decoder for all outputs.

    Attributes:
        input: The configuration of the modalities.
        adapter: The configuration of their common width.
        encoder: The configuration of the encoder.
        decoder: The configuration of the decoder.
        outputs: The outputs by name. Their names may differ from those of the inputs.
        query_embedding_channels: The number of channels by which a query exceeds the widest
            output's own query. They hold a vector that is learned for each output.
        decoded_channels: The number of channels of every output before its own linear layer.
    """

    input: MultimodalInput
    adapter: PaddedModalities = PaddedModalities()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig(query_residual=False)
    outputs: Mapping[str, GridOutput | VectorOutput]
    query_embedding_channels: Count = 2
    decoded_channels: Count = 512

    def __post_init__(self) -> None:
        if not self.outputs or not all(name.isidentifier() for name in self.outputs):
            raise refusal(self, "outputs", "a mapping from identifiers, with at least one")
        check_cross_heads(self.encoder, self.input_channels)
        check_decoder_heads(self.decoder, self.encoder)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all modalities."""
        return self.adapter.token_grid(self.input)[0]

    @property
    def input_channels(self) -> int:
        """The number of channels of a token."""
        return self.adapter.content_channels(self.input)

    @property
    def num_outputs(self) -> int:
        """The number of queries of all outputs."""
        return sum(output.num_outputs for output in self.outputs.values())

    @property
    def query_channels(self) -> int:
        """The number of channels of an output query."""
        widest = max(output.query_channels for output in self.outputs.values())
        return widest + self.query_embedding_channels
