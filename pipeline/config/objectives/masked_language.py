"""The options of masked language modelling: the model fills in bytes that were masked."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from perceiver_model.config import DecoderConfig
from perceiver_model.families.language_config import LanguageConfig
from pipeline.config.objectives.base import ObjectiveConfig, Tree


class MaskedLanguageConfig(ObjectiveConfig):
    """The model fills in bytes of texts that were masked (Perceiver IO, section 4.1).

    Of the chosen bytes 80 % become a mask, 10 % another byte, and 10 % stay.

    Attributes:
        kind: The name of the objective.
        mask_probability: The probability that a word, or a byte, is chosen.
        whole_words: Whether all bytes of a word, and the space before it, are chosen together.
        blank: The character that a registered model fills in: each one in a text stands for one
            missing byte. It must be one byte of UTF-8.
    """

    targets: ClassVar = ("none",)

    kind: Literal["masked_language"] = "masked_language"
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    whole_words: bool = True
    blank: str = Field(default="_", min_length=1, max_length=1)

    def check(self, config: Tree) -> None:
        """Refuse other data than texts, and a blank that is no single byte."""
        super().check(config)
        self.check_text_alone(config)
        if len(self.blank.encode()) != 1:
            raise ValueError(f"objective.blank is {self.blank!r}, which is more than one byte")

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> LanguageConfig:
        """Return the configuration of a masked language model."""
        reading = config.reading(made_with)
        return LanguageConfig(
            input=reading["input"],
            adapter=reading["adapter"],
            encoder=config.model.encoder,
            decoder=config.model.decoder or DecoderConfig(query_residual=False),
        )
