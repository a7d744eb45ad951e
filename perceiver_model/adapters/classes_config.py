"""The configuration of class labels as an input. It does not import torch.

The multimodal autoencoder reads the label as an input (IO, section 4.3).
"""

from typing import Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import Count, config_dataclass


@config_dataclass
class ClassInput:
    """Class indices `[batch]`, int64, or probabilities `[batch, num_classes]`, floating point.

    Attributes:
        kind: Must be `class`.
        num_classes: The number of classes, at least 1. Class indices are at least 0 and below it.
    """

    kind: Literal["class"] = "class"
    num_classes: Count


@config_dataclass
class OneHotConfig(AdapterBase):
    """One token with one channel per class.

    Attributes:
        kind: Must be `one_hot`.
    """

    reads = (ClassInput,)
    holds_positions = True

    kind: Literal["one_hot"] = "one_hot"

    def token_grid(self, classes: ClassInput) -> tuple[int, ...]:
        """Return `(1,)`, because there is a single token."""
        return (1,)

    def content_channels(self, classes: ClassInput) -> int:
        """Return the number of classes."""
        return classes.num_classes
