"""What the objectives of texts have in common: means over tokens, and bits a byte."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from perceiver_model.adapters.text import BYTE_VOCAB_SIZE, decode_bytes
from pipeline.training.objectives.answers import ClassAnswers, Shown
from pipeline.training.objectives.base import Objective
from pipeline.training.objectives.batch import Batch


class TokenLosses(NamedTuple):
    """The losses of a batch's tokens.

    Attributes:
        nats: The cross-entropy of each token, float32 `[batch, tokens]`; 0 where none counts.
        counted: Which tokens count, bool `[batch, tokens]`.
        right: Which of these the model predicts, bool `[batch, tokens]`.
    """

    nats: torch.Tensor
    counted: torch.Tensor
    right: torch.Tensor


class TextObjective(Objective):
    """Train with the cross-entropy of tokens; select by the bits that a byte takes.

    The loss is the mean over all tokens that count, and not over texts.
    """

    target: ClassVar = "none"
    metrics: ClassVar = ("bits_per_byte", "accuracy")
    num_sums: ClassVar = 3
    selection: ClassVar = "bits_per_byte"
    sample_metric: ClassVar = "sample_bits_per_byte"
    higher_is_better: ClassVar = False
    worst: ClassVar = math.inf

    @abstractmethod
    def targets(self, batch: Batch) -> torch.Tensor:
        """Return the tokens to predict, int64 `[batch, tokens]`, with IGNORED for the others."""

    def token_losses(self, outputs: torch.Tensor, batch: Batch) -> TokenLosses:
        """Return the losses of the tokens.

        Args:
            outputs: The logits, `[batch, tokens, vocabulary]`.
            batch: The texts.
        """
        targets = self.targets(batch)
        nats = F.cross_entropy(
            outputs.movedim(-1, 1), targets, ignore_index=IGNORED, reduction="none"
        )
        counted = targets != IGNORED
        return TokenLosses(nats, counted, (outputs.argmax(dim=-1) == targets) & counted)

    def losses(self, outputs: torch.Tensor, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the mean cross-entropy of each text's tokens that count, in nats, `[batch]`."""
        nats, counted, _ = self.token_losses(outputs, batch)
        return nats.sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def loss_weights(self, batch: Batch) -> torch.Tensor:
        """Return the number of each text's tokens that count, float32 `[batch]`."""
        return batch.weights * (self.targets(batch) != IGNORED).sum(dim=1)

    def sums(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum of the nats, and the numbers of right tokens and of tokens, `[3]`."""
        nats, counted, right = self.token_losses(outputs, batch)
        weights = batch.weights[:, None]
        return torch.stack([(part * weights).sum() for part in (nats, right, counted)])

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the bits a byte, and the share of bytes that are predicted."""
        tokens = max(1.0, sums[2])
        return (sums[0] / math.log(2) / tokens, sums[1] / tokens)

    def class_answers(self, outputs: torch.Tensor, batch: Batch) -> ClassAnswers:
        """Return the tokens that count of the good texts."""
        targets = self.targets(batch)
        return ClassAnswers.of(outputs, targets, (targets != IGNORED) & batch.good[:, None])

    def shown(self, outputs: torch.Tensor, batch: Batch) -> list[Shown]:
        """Return the tokens that count as text, and the most probable ones in their places."""
        targets, answers = self.targets(batch), outputs[..., :BYTE_VOCAB_SIZE].argmax(dim=-1)
        return [
            Shown(decode_bytes(true[true != IGNORED]), decode_bytes(answer[true != IGNORED]))
            for true, answer in zip(targets, answers, strict=True)
        ]

    def sample_values(self, outputs: Any, batch: Batch, classes: tuple[str, ...]) -> np.ndarray:
        """Return the bits a byte of each text; 0 for a text of which no byte counts."""
        return (self.losses(outputs, batch, training=False).double() / math.log(2)).cpu().numpy()


IGNORED = -100
"""The target of a token that does not count."""
