"""The configuration of several modalities in one input array. It does not import torch."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from perceiver_model.adapters.configs import AdapterBase, MediaAdapter, MediaInput
from perceiver_model.config_checks import (
    KEEP_INTEGERS,
    Count,
    DropProbability,
    config_dataclass,
    refusal,
)
from perceiver_model.tokens_config import TokensConfig


@config_dataclass
class Modality(TokensConfig):
    """One modality of an input: its input, its tokens, and how training hides it.

    Attributes:
        dropout: The probability that a training sample loses the whole modality. The paper drops
            video with a probability of 0.3, so that video does not dominate sound. A sample never
            loses all of its modalities.
        mask_probability: The probability that a training token is replaced by the modality's
            learned mask token, as in DeepMind's autoencoder. None means that the modality has no
            mask token.
        masked_in_evaluation: Whether mask tokens replace all of the modality's tokens outside of
            training. In training, they then also replace the tokens of samples without the
            modality. Such a model reads labels in training and predicts them in evaluation (IO,
            section 4.3).
    """

    input: MediaInput
    adapter: MediaAdapter
    dropout: DropProbability = 0.0
    mask_probability: Annotated[float, Field(ge=0, le=1), KEEP_INTEGERS] | None = None
    masked_in_evaluation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter.is_successive:
            raise ValueError(
                f"adapter {self.adapter.kind!r} is for images alone: its maps are read one after "
                "the other, and modalities are read together"
            )
        if self.masked_in_evaluation and self.mask_probability is None:
            raise refusal(self, "masked_in_evaluation", "False where mask_probability is None")
        if self.masked_in_evaluation and self.dropout:
            raise refusal(self, "dropout", "0 where masked_in_evaluation: its tokens are masked")


@config_dataclass
class MultimodalInput:
    """Several modalities by name. A batch is a mapping from the same names to their inputs.

    Attributes:
        kind: Must be `multimodal`.
        modalities: Each modality by its name, at least one. A name is a Python identifier.
    """

    kind: Literal["multimodal"] = "multimodal"
    modalities: Mapping[str, Modality]

    def __post_init__(self) -> None:
        if not self.modalities or not all(name.isidentifier() for name in self.modalities):
            raise refusal(self, "modalities", "a mapping from identifiers, with at least one")


@config_dataclass
class PaddedModalities(AdapterBase):
    """The tokens of all modalities, one modality after the other, padded to a common width.

    The common width is that of the widest modality's [content | positions] plus
    `embedding_channels`.

    Attributes:
        kind: Must be `padded_modalities`.
        embedding_channels: The number of channels of the vector that is learned for each modality,
            at least 1.
        padding: What fills a narrower modality up to the widest. `learned` makes the learned vector
            longer (IO, section 3.1: DeepMind's `min_padding_size`). `zeros` uses zeros (paper,
            section 4.2).
    """

    reads = (MultimodalInput,)
    holds_positions = True

    kind: Literal["padded_modalities"] = "padded_modalities"
    embedding_channels: Count = 4
    padding: Literal["learned", "zeros"] = "learned"

    def token_grid(self, media: MultimodalInput) -> tuple[int, ...]:
        """Return the total number of tokens of all modalities, `(tokens,)`."""
        return (sum(math.prod(part.token_grid) for part in media.modalities.values()),)

    def content_channels(self, media: MultimodalInput) -> int:
        """Return the common width of the modalities."""
        widest = max(part.input_channels for part in media.modalities.values())
        return widest + self.embedding_channels
