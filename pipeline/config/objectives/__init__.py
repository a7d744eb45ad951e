"""The sections `objective`: what a model may be trained for, one file for each objective.

The losses, metrics and answers are in `pipeline.training.objectives`. This package only holds the
options, and builds the model's configuration. It does not import torch.
"""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from pipeline.config.objectives.autoencode import AutoencodeConfig
from pipeline.config.objectives.autoregressive import AutoregressConfig
from pipeline.config.objectives.base import ObjectiveConfig
from pipeline.config.objectives.classify import ClassifyConfig
from pipeline.config.objectives.masked_language import MaskedLanguageConfig
from pipeline.config.objectives.multi_label import MultiLabelConfig
from pipeline.config.objectives.regress import RegressConfig
from pipeline.config.objectives.segment import SegmentConfig
from pipeline.config.objectives.sequence import SequenceConfig

OBJECTIVE_CONFIGS: tuple[type[ObjectiveConfig], ...] = (
    ClassifyConfig,
    MultiLabelConfig,
    RegressConfig,
    SegmentConfig,
    SequenceConfig,
    MaskedLanguageConfig,
    AutoregressConfig,
    AutoencodeConfig,
)
"""The options of every objective. The first one that takes a kind of target is its default."""

if TYPE_CHECKING:
    AnyObjective = ObjectiveConfig
else:
    # The members are known when the module runs, so `|` cannot be written.
    AnyObjective = Annotated[Union[OBJECTIVE_CONFIGS], Field(discriminator="kind")]  # noqa: UP007

__all__ = ["OBJECTIVE_CONFIGS", "AnyObjective", "ObjectiveConfig", "default_objective"]


def default_objective(target: str) -> ObjectiveConfig | None:
    """Return the objective of a configuration that names none; None if it must name one.

    Args:
        target: The value of `data.target.kind`.
    """
    if target == "none":
        return None
    return next((each() for each in OBJECTIVE_CONFIGS if target in each.targets), None)
