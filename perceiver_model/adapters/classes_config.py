"""Class labels as an input, as in autoencoding with the label (IO, section 4.3): free of torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.config_checks import FORBID_EXTRA, check_positive_integers


@dataclass(frozen=True, kw_only=True)
class ClassInput:
    """Classes `[batch]`, int64 from 0, or their probabilities `[batch, num_classes]`, floating.

    Attributes:
        kind: must be `class`.
        num_classes: at least 1.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA

    kind: Literal["class"] = "class"
    num_classes: int

    def __post_init__(self) -> None:
        check_positive_integers(self, "num_classes")


@dataclass(frozen=True, kw_only=True)
class OneHot(AdapterBase):
    """One token, with a channel for every class.

    Attributes:
        kind: must be `one_hot`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_EXTRA
    reads = (ClassInput,)
    holds_positions = True

    kind: Literal["one_hot"] = "one_hot"

    def token_grid(self, classes: ClassInput) -> tuple[int, ...]:
        """A single token."""
        return (1,)

    def content_channels(self, classes: ClassInput) -> int:
        """The number of classes."""
        return classes.num_classes
