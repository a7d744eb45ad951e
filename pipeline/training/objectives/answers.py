"""What a report on an evaluation is made of: which class each item has, and which it got."""

from typing import Any, NamedTuple

import torch


class ClassAnswers(NamedTuple):
    """The classes of items, such as samples, pixels or tokens. Items that do not count are absent.

    Attributes:
        targets: The numbers of the true classes, int64 `[items]`.
        answers: The numbers of the most probable classes, int64 `[items]`.
        confidences: The probabilities of these, floating-point `[items]`.
    """

    targets: torch.Tensor
    answers: torch.Tensor
    confidences: torch.Tensor

    @classmethod
    def of(
        cls, logits: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor
    ) -> "ClassAnswers":
        """Return the classes of the items that count.

        Args:
            logits: Floating-point `[..., classes]`.
            targets: The numbers of the true classes, integers `[...]`.
            counted: Which items count, bool `[...]`.
        """
        rows = logits[counted]
        # The logarithm of the sum is exact where a large softmax in float64 would take memory.
        best, answers = rows.max(dim=-1)
        confidences = (best.double() - rows.double().logsumexp(dim=-1)).exp()
        return cls(targets[counted].long(), answers, confidences)


class Shown(NamedTuple):
    """One sample's target and answer for people.

    Attributes:
        target: Texts, numbers, lists and dictionaries of these, or the bytes of a picture or sound;
            None if there is no target.
        answer: The same for the answer.
    """

    target: Any
    answer: Any
