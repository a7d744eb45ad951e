"""Sequences: each sample has a sequence of tokens, such as a caption or a transcript."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F

from perceiver_model.adapters.text_config import BYTE_VOCAB_SIZE
from perceiver_model.families.queries import QueryPredictor
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.training.objectives.answers import ClassAnswers, Shown
from pipeline.training.objectives.base import Objective
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.prediction import Prediction, answer_of

if TYPE_CHECKING:
    from pipeline.config.tree import Config
    from shards import ShardSet

IGNORED = -100
"""The target of positions after the end."""
EOS, FIRST_BYTE = 2, 6
"""Tokens of DeepMind's byte vocabulary: the end, and byte 0."""


@dataclass(frozen=True)
class SequencePrediction(Prediction):
    """The sequence of one input.

    Attributes:
        source: The same as in `ClassPrediction`.
        tokens: The tokens before the end.
        text: The text, if the tokens are bytes; else None. Bytes that are no UTF-8 are replaced.
        error: Why the input cannot be used; None if it can.
    """

    source: str
    tokens: list[int] | None
    text: str | None
    error: str | None


@dataclass(frozen=True)
class TokenSequence(Objective):
    """Train with the cross-entropy of the tokens and of the end; select by the token accuracy.

    The loss and the token accuracy are means over tokens, and the end counts as one.

    Attributes:
        model_config: The configuration of a model with one output for each position.
        is_text: Whether the tokens are bytes.
        label_smoothing: The label smoothing of the training loss only.
    """

    name: ClassVar = "sequence"
    target: ClassVar = "tokens"
    prediction: ClassVar = SequencePrediction
    metrics: ClassVar = ("token_accuracy", "exact_match")
    num_sums: ClassVar = 4
    selection: ClassVar = "token_accuracy"
    sample_metric: ClassVar = "sample_token_accuracy"
    worst: ClassVar = 0.0
    card_fields: ClassVar = frozenset({"model", "is_text"})

    model_config: QueriesConfig
    is_text: bool
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective of a training."""
        options = config.trained_for
        assert options is not None
        model = options.model(config, 0, shard_set.manifest.config)
        is_text = getattr(options, "vocab_size", None) is None
        return cls(model, is_text, config.training.label_smoothing)

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: The outputs are not the tokens that the card says.
        """
        model, is_text = QueriesConfig.from_dict(values["model"]), values["is_text"]
        if not isinstance(is_text, bool):
            raise ValueError("is_text is neither true nor false")
        if is_text and model.output_channels != BYTE_VOCAB_SIZE:
            raise ValueError(f"{model.output_channels} outputs are no bytes")
        return cls(model, is_text)

    def to_card(self) -> dict[str, Any]:
        """Return the model's configuration, and whether its tokens are bytes."""
        return {"model": self.model_config.to_dict(), "is_text": self.is_text}

    @property
    def end(self) -> int:
        """The token that ends a sequence."""
        return EOS if self.is_text else self.model_config.output_channels - 1

    def build_model(self, positions: torch.Tensor | None = None) -> QueryPredictor:
        """Return a model with new weights."""
        return QueryPredictor(self.model_config, positions=positions)

    def losses(self, outputs: torch.Tensor, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the mean cross-entropy of each sample's tokens and its end, `[batch]`.

        Args:
            outputs: The logits, `[batch, positions, tokens]`.
            batch: The samples.
            training: Whether labels are smoothed.

        Raises:
            UserError: A target holds a token that the model does not have.
        """
        losses = F.cross_entropy(
            outputs.movedim(-1, 1),
            self._targets(batch),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing if training else 0.0,
        )
        return losses.sum(dim=1) / (batch.target_lengths + 1)

    def loss_weights(self, batch: Batch) -> torch.Tensor:
        """Return the number of each sample's tokens, with its end, float32 `[batch]`."""
        return batch.weights * (batch.target_lengths + 1)

    def weights_are_stored(self, *, mixed: bool) -> bool:
        """Return whether the weights are known before augmentation; see the base class."""
        return True

    def sums(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the numbers of right tokens, tokens, right samples and samples, `[4]`."""
        counted, right = self._right(outputs, batch)
        whole = (right == counted).all(dim=1) & batch.good
        parts = (right & batch.good[:, None], counted & batch.good[:, None], whole, batch.good)
        return torch.stack([part.sum() for part in parts]).to(outputs.dtype)

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the share of right tokens, and of samples whose tokens are all right."""
        tokens, samples = max(1.0, sums[1]), max(1.0, sums[3])
        return (sums[0] / tokens, sums[2] / samples)

    def class_answers(self, outputs: torch.Tensor, batch: Batch) -> ClassAnswers:
        """Return the tokens of the good samples, with their ends."""
        targets = self._targets(batch)
        return ClassAnswers.of(outputs, targets, (targets != IGNORED) & batch.good[:, None])

    def shown(self, outputs: torch.Tensor, batch: Batch) -> list[Shown]:
        """Return the true tokens and the answer's, and their texts."""
        found = self.predictions(outputs, [""] * len(outputs))
        rows = zip(batch.targets.tolist(), batch.target_lengths.tolist(), found, strict=True)
        return [
            Shown(answer_of(self._prediction("", [*row[:length], self.end])), answer_of(prediction))
            for row, length, prediction in rows
        ]

    def predictions(self, outputs: torch.Tensor, sources: Sequence[str]) -> list[Prediction]:
        """Return the most probable token of each position, up to the end."""
        return [
            self._prediction(source, row)
            for source, row in zip(sources, outputs.argmax(dim=-1).tolist(), strict=True)
        ]

    def sample_values(
        self, outputs: torch.Tensor, batch: Batch, classes: tuple[str, ...]
    ) -> np.ndarray:
        """Return the token accuracy of each sample."""
        counted, right = self._right(outputs, batch)
        return (right.sum(dim=1).double() / counted.sum(dim=1)).cpu().numpy()

    def _prediction(self, source: str, row: list[int]) -> SequencePrediction:
        tokens = row[: row.index(self.end)] if self.end in row else row
        text = None
        if self.is_text:
            written = bytes(token - FIRST_BYTE for token in tokens if token >= FIRST_BYTE)
            text = written.decode("utf-8", "replace")
        return SequencePrediction(source, tokens, text, None)

    def _right(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which positions count and which of them are right, bool `[batch, positions]`."""
        targets = self._targets(batch)
        counted = targets != IGNORED
        return counted, (outputs.argmax(dim=-1) == targets) & counted

    def _targets(self, batch: Batch) -> torch.Tensor:
        """Return the tokens and the end, int64 `[batch, positions]`, with IGNORED after it."""
        size, positions = len(batch.weights), self.model_config.num_queries
        lengths = batch.target_lengths
        given = batch.targets.long()[:, : positions - 1]
        self._check(given, lengths, batch.targets.shape[1])
        targets = given.new_full((size, positions), IGNORED)
        targets[:, : given.shape[1]] = given
        columns = torch.arange(positions, device=targets.device)
        targets = targets.masked_fill(columns > lengths[:, None], IGNORED)
        return targets.masked_fill(columns == lengths[:, None], self.end)

    def _check(self, given: torch.Tensor, lengths: torch.Tensor, columns: int) -> None:
        """Refuse targets that are longer, or hold other tokens, than the model's."""
        channels = self.model_config.output_channels
        most = self.model_config.num_queries - 1
        if columns > most or bool((given >= channels).any()):
            from pipeline.errors import UserError  # only a training meets such targets

            found = f"{columns} tokens" if columns > most else f"token {int(given.max())}"
            limit = (
                f"data.target.max_length {most}"
                if columns > most
                else f"tokens below {channels}; set objective.vocab_size"
            )
            raise UserError(f"a target holds {found}, and the model has {limit}")
