"""The section `model.init`: the weights that a training starts from, and which are trained."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from pipeline.config.base import ConfigBase
from pipeline.config.data import refuse_relative_in_a_job
from pipeline.config.folders import output_address

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
SourceKind = Literal["folder", "run", "registered model"]
_RUN = re.compile(r"runs:/([^/]+)|([0-9a-f]{32})")
_VERSION = re.compile(r"models:/[^/@]+(@[^/@]+|/[1-9][0-9]*)")


class InitConfig(ConfigBase):
    """Weights to start from, and which of the model's parameters are trained.

    A pattern is one of fnmatch on the name of a parameter: `*` stands for any text, dots included,
    as in `encoder.*` or `*.bias`. A pattern that matches no parameter is refused.

    Attributes:
        source: The weights: the folder or URL of a training, of a checkpoint, or of a model that
            `perceiver export` wrote; the folder of a registered model's files or of a transformers
            checkpoint; the ID of an MLflow run; or a registered model, `models:/NAME@ALIAS` or
            `models:/NAME/VERSION`.
        strict: Whether every tensor of the model must be in the source with the same shape, and the
            source may have no others. If false, tensors that do not fit are left out, and the
            model's new weights are kept in their place.
        freeze: Patterns of the parameters that are not trained.
        learning_rate_scale: The factor of the learning rate for the parameters of each pattern. All
            others have 1.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(serialize_by_alias=True)

    source: str = Field(alias="from", min_length=1)
    strict: bool = True
    freeze: tuple[Pattern, ...] = ()
    learning_rate_scale: dict[Pattern, float] = Field(default_factory=dict)

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        if _RUN.fullmatch(source) or _VERSION.fullmatch(source):
            return source
        if source.startswith(("models:", "runs:")):
            raise ValueError(
                f"is {source!r}; give a folder or its URL, the ID of an MLflow run, "
                "models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        refuse_relative_in_a_job(source)
        return output_address(source)

    @field_validator("learning_rate_scale")
    @classmethod
    def _factors_train(cls, scales: dict[str, float]) -> dict[str, float]:
        for pattern, factor in scales.items():
            if not 0 < factor <= 1000:
                raise ValueError(
                    f"{pattern!r} has {factor:g}; must be above 0 and at most 1000 (a parameter "
                    "that is not trained belongs to freeze)"
                )
        return scales

    @property
    def kind(self) -> SourceKind:
        """What the source is."""
        if _VERSION.fullmatch(self.source):
            return "registered model"
        return "run" if _RUN.fullmatch(self.source) else "folder"

    @property
    def can_move(self) -> bool:
        """Whether the source is an alias, which names another version after a promotion."""
        return self.kind == "registered model" and "@" in self.source

    @property
    def run_id(self) -> str:
        """The ID of the run, if the source is a run."""
        return self.source.removeprefix("runs:/")
