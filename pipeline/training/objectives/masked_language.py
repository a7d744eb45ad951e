"""Masked language modelling: the model fills in bytes that were masked (IO, section 4.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from perceiver_model.adapters.text import MASK, NUM_SPECIAL, decode_bytes
from perceiver_model.families.language import MaskedLanguageModel, mask_tokens
from perceiver_model.families.language_config import LanguageConfig
from pipeline.inputs.collate import BatchInputs, BatchMask
from pipeline.training.objectives.answers import Shown
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.prediction import Prediction
from pipeline.training.objectives.text_loss import IGNORED, TextObjective

if TYPE_CHECKING:
    from pipeline.config.tree import Config
    from shards import ShardSet


@dataclass(frozen=True)
class FilledText(Prediction):
    """The text of one input, filled in.

    Attributes:
        source: The same as in `ClassPrediction`.
        text: The text with a byte in place of each blank. Bytes that are not UTF-8 are replaced.
        error: Why the input cannot be used; None if it can.
    """

    source: str
    text: str | None
    error: str | None


@dataclass(frozen=True)
class MaskedLanguage(TextObjective):
    """Mask words as BERT does, and predict their bytes.

    A text is masked in the same way on any number of workers; evaluations always mask it alike.

    Attributes:
        model_config: The model's configuration.
        mask_probability: The probability that a word, or a byte, is chosen.
        whole_words: Whether words are chosen, and not single bytes.
        blank: The byte that a registered model fills in.
    """

    name: ClassVar = "masked_language"
    prediction: ClassVar = FilledText
    card_fields: ClassVar = frozenset({"model", "blank"})

    model_config: LanguageConfig
    mask_probability: float = 0.15
    whole_words: bool = True
    blank: int = ord("_")

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective of a training."""
        options = config.trained_for
        assert options is not None
        return cls(
            options.model(config, 0, shard_set.manifest.config),
            getattr(options, "mask_probability", 0.15),
            getattr(options, "whole_words", True),
            getattr(options, "blank", "_").encode()[0],
        )

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: The blank is no byte.
        """
        blank = values["blank"]
        if isinstance(blank, bool) or not isinstance(blank, int) or not 0 <= blank < 256:
            raise ValueError(f"blank is {blank!r}; must be a byte")
        return cls(LanguageConfig.from_dict(values["model"]), blank=blank)

    def to_card(self) -> dict[str, Any]:
        """Return the model's configuration and the blank."""
        return {"model": self.model_config.to_dict(), "blank": self.blank}

    def build_model(self, positions: torch.Tensor | None = None) -> MaskedLanguageModel:
        """Return a model with new weights."""
        return MaskedLanguageModel(self.model_config)

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the logits of the masked texts, `[batch, length, vocabulary]`."""
        read, _ = self._masked(batch)
        logits: torch.Tensor = model(read, batch.mask)
        return logits

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return the bytes that were chosen."""
        return self._masked(batch)[1]

    def model_inputs(self, batch: Batch) -> tuple[BatchInputs, BatchMask]:
        """Return the masked texts."""
        return self._masked(batch)[0], batch.mask

    def shown(self, outputs: torch.Tensor, batch: Batch) -> list[Shown]:
        """Return each text, and the same text with its chosen bytes filled in."""
        assert isinstance(batch.inputs, torch.Tensor)
        targets = self.targets(batch)
        filled = outputs[..., NUM_SPECIAL:].argmax(dim=-1) + NUM_SPECIAL
        filled = torch.where(targets == IGNORED, batch.inputs, filled)
        return [
            Shown(decode_bytes(whole), decode_bytes(answer))
            for whole, answer in zip(batch.inputs, filled, strict=True)
        ]

    def as_asked(self, batch: Batch) -> Batch:
        """Return the texts with masks at their blanks, and at no other byte."""
        assert isinstance(batch.inputs, torch.Tensor)
        is_blank = batch.inputs == self.blank + NUM_SPECIAL
        targets = batch.inputs.masked_fill(~is_blank, IGNORED)
        masked = batch.inputs.masked_fill(is_blank, MASK), targets
        return replace(batch, cache={**batch.cache, "masked": masked})

    def answers(self, model: Any, batch: Batch) -> torch.Tensor:
        """Return the texts with a byte in place of each blank, int64 `[batch, length]`."""
        assert isinstance(batch.inputs, torch.Tensor)
        is_blank = batch.inputs == self.blank + NUM_SPECIAL
        logits = self.outputs(model, self.as_asked(batch), training=False)
        filled = logits[..., NUM_SPECIAL:].argmax(dim=-1) + NUM_SPECIAL
        return torch.where(is_blank, filled, batch.inputs)

    def predictions(self, outputs: torch.Tensor, sources: Sequence[str]) -> list[Prediction]:
        """Return the texts from `answers`."""
        return [
            FilledText(source, decode_bytes(ids), None)
            for source, ids in zip(sources, outputs, strict=True)
        ]

    def _masked(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token ids that the model reads, and the targets, int64 `[batch, length]`."""
        if "masked" not in batch.cache:
            ids, mask = batch.inputs, batch.mask
            assert isinstance(ids, torch.Tensor)
            assert mask is None or isinstance(mask, torch.Tensor)
            length = self.model_config.input.max_length  # the same numbers whatever the padding
            uniform = batch.random(3 * length).view(len(ids), 3, length).movedim(1, 0)
            batch.cache["masked"] = mask_tokens(
                ids,
                mask,
                probability=self.mask_probability,
                whole_words=self.whole_words,
                vocab_size=self.model_config.input.vocab_size,
                uniform=uniform[..., : ids.shape[1]],
            )
        found: tuple[torch.Tensor, torch.Tensor] = batch.cache["masked"]
        return found
