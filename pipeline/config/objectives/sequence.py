"""The options of sequences: each sample has a sequence of tokens, such as a caption."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from perceiver_model.adapters.text_config import BYTE_VOCAB_SIZE
from perceiver_model.config import DecoderConfig
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.config.objectives.base import ObjectiveConfig, Tree


class SequenceConfig(ObjectiveConfig):
    """Each sample has a sequence of tokens. A decoder reads each token by a query for its position.

    The model predicts all tokens at once, and after them the end of the sequence.

    Attributes:
        kind: The name of the objective.
        vocab_size: The number of different tokens, which are numbered from 0. Null means that the
            targets are texts, which are read as UTF-8 bytes.
    """

    targets: ClassVar = ("tokens",)
    smooths_labels: ClassVar = True

    kind: Literal["sequence"] = "sequence"
    vocab_size: int | None = Field(default=None, ge=1, le=2**24)

    def check(self, config: Tree) -> None:
        """Refuse targets of unknown length."""
        super().check(config)
        if config.data.target.max_length is None:
            raise ValueError(
                "objective.kind is 'sequence', which needs data.target.max_length: the number of "
                "tokens in the longest target"
            )

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> QueriesConfig:
        """Return the configuration of a model with a query for each token and for the end."""
        # Bytes have a token for the end already.
        channels = BYTE_VOCAB_SIZE if self.vocab_size is None else self.vocab_size + 1
        return QueriesConfig(
            **config.reading(made_with),
            encoder=config.model.encoder,
            decoder=config.model.decoder or DecoderConfig(),
            num_queries=(config.data.target.max_length or 1) + 1,
            output_channels=channels,
        )
