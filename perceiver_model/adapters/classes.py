"""Class labels as tokens."""

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.adapters.checks import Tokens, check_inputs, check_mask, check_shape
from perceiver_model.adapters.configs import ClassInput


class OneHotAdapter(nn.Module):
    """One token, which holds the probability of every class."""

    def __init__(self, classes: ClassInput) -> None:
        super().__init__()
        self.num_classes = classes.num_classes

    def forward(self, classes: torch.Tensor, mask: torch.Tensor | None = None) -> Tokens:
        """Return the content `[batch, 1, num_classes]`, float32, and the token mask.

        Args:
            classes: The class indices, int64 `[batch]`, or probabilities, floating point
                `[batch, num_classes]`. torch raises an error for an index outside the classes.
            mask: The samples whose class is known, bool `[batch]`, or None if all are known.
        """
        check_mask(mask, classes.shape[:1])
        if classes.dtype == torch.int64:
            check_shape("inputs", classes, ())
            known = classes if mask is None else classes.masked_fill(~mask, 0)
            content = F.one_hot(known, self.num_classes).float()
        else:
            check_inputs(classes, None, (self.num_classes,))
            content = classes.float()
        if mask is None:
            return content.unsqueeze(1), None
        return content.masked_fill(~mask.unsqueeze(-1), 0.0).unsqueeze(1), mask.unsqueeze(1)
