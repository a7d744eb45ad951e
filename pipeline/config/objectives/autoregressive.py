"""The options of autoregressive modelling: the model predicts each next byte of a text."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from pydantic import Field

from perceiver_model.families.autoregressive_config import ARConfig
from pipeline.config.model import ModelConfig
from pipeline.config.objectives.base import ObjectiveConfig, Tree


class AutoregressConfig(ObjectiveConfig):
    """A Perceiver AR predicts each next byte of a text. The model is `model.autoregressive`.

    A text starts with a token of its own. If it is longer than the model's latents, only its last
    bytes are predicted, each from all bytes before it.

    Attributes:
        kind: The name of the objective.
        continue_bytes: The most bytes by which a registered model continues a text.
        temperature: The number that logits are divided by before a byte is drawn; 0 takes the most
            probable byte.
        top_k: The number of most probable bytes from which one is drawn; null draws from all.
    """

    targets: ClassVar = ("none",)
    is_autoregressive: ClassVar = True

    kind: Literal["autoregressive"] = "autoregressive"
    continue_bytes: int = Field(default=128, ge=1, le=65_536)
    temperature: float = Field(default=0.0, ge=0)
    top_k: int | None = Field(default=None, ge=1)

    def check(self, config: Tree) -> None:
        """Refuse data other than texts, another model, and fields that the model does not use."""
        super().check(config)
        self.check_text_alone(config)
        if self.top_k is not None and self.temperature == 0:
            raise ValueError(
                "objective.top_k is given, but objective.temperature is 0, which takes the most "
                "probable byte; give a temperature above 0"
            )
        if config.model.autoregressive is None:
            raise ValueError(
                "objective.kind is 'autoregressive', which needs the section model.autoregressive"
            )
        plain = ModelConfig(autoregressive=config.model.autoregressive, init=config.model.init)
        for name in type(plain).model_fields:
            if getattr(config.model, name) != getattr(plain, name):
                raise ValueError(
                    f"model.{name} is given, which a Perceiver AR does not use; leave it out"
                )
        training = config.training
        if training.activation_checkpointing:
            raise ValueError(
                "training.activation_checkpointing is for models with an encoder, and a Perceiver "
                "AR has none; leave it out"
            )
        if training.attention_path != "auto":
            raise ValueError(
                "training.attention_path is for cross-attends without a causal mask; a Perceiver "
                "AR has one; leave it out"
            )

    def model(
        self,
        config: Tree,
        num_classes: int,
        made_with: Mapping[str, Any] | None = None,
    ) -> ARConfig:
        """Return the configuration of a Perceiver AR."""
        if config.model.autoregressive is None:
            raise ValueError("autoregressive is missing")
        (text,) = config.data.formats.values()
        fields = asdict(config.model.autoregressive)
        return ARConfig(**fields, max_length=getattr(text, "max_length"))  # noqa: B009  # of a TextFormat
