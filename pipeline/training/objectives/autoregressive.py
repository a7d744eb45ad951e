"""Autoregressive modelling: the model predicts each next byte of a text (arXiv 2202.07765)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from perceiver_model.adapters.text import BOS, PAD, decode_bytes
from perceiver_model.families.autoregressive import PerceiverAR
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.families.generation import generate
from pipeline.inputs.collate import BatchInputs, BatchMask
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.prediction import Prediction
from pipeline.training.objectives.text_loss import IGNORED, TextObjective

if TYPE_CHECKING:
    from pipeline.config.tree import Config
    from shards import ShardSet

SEED = 0
"""The seed of a registered model's draws: the same request gets the same answer."""


@dataclass(frozen=True)
class ContinuedText(Prediction):
    """The text of one input, continued.

    Attributes:
        source: The same as in `ClassPrediction`.
        continuation: What follows the text. Bytes that are not UTF-8 are replaced.
        error: Why the input cannot be used; None if it can.
    """

    source: str
    continuation: str | None
    error: str | None


@dataclass(frozen=True)
class Autoregression(TextObjective):
    """Predict each byte of a text from all bytes before it.

    Attributes:
        model_config: The model's configuration.
        continue_bytes: The most bytes by which a registered model continues a text.
        temperature: By what the logits are divided; 0 takes the most probable byte.
        top_k: The number of most probable bytes to draw from; None draws from all.
    """

    name: ClassVar = "autoregressive"
    prediction: ClassVar = ContinuedText
    graph_refusal: ClassVar = "it answers byte after byte"
    card_fields: ClassVar = frozenset({"model", "continue_bytes", "temperature", "top_k"})

    model_config: ARConfig
    continue_bytes: int = 128
    temperature: float = 0.0
    top_k: int | None = None

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective of a training."""
        options = config.trained_for
        assert options is not None
        return cls(
            options.model(config, 0, shard_set.manifest.config),
            getattr(options, "continue_bytes", 128),
            getattr(options, "temperature", 0.0),
            getattr(options, "top_k", None),
        )

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: A number is not allowed.
        """
        count, top_k = values["continue_bytes"], values["top_k"]
        temperature = float(values["temperature"])
        for name, number in (("continue_bytes", count), ("top_k", 1 if top_k is None else top_k)):
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 65_536:
                raise ValueError(f"{name} is {number!r}; must be an integer from 1 to 65536")
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature}; must be at least 0")
        return cls(ARConfig.from_dict(values["model"]), count, temperature, top_k)

    def to_card(self) -> dict[str, Any]:
        """Return the model's configuration, and how texts are continued."""
        return {
            "model": self.model_config.to_dict(),
            "continue_bytes": self.continue_bytes,
            "temperature": self.temperature,
            "top_k": self.top_k,
        }

    def build_model(self, positions: torch.Tensor | None = None) -> PerceiverAR:
        """Return a model with new weights."""
        return PerceiverAR(self.model_config)

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> torch.Tensor:
        """Return the logits of the last bytes, `[batch, latents, vocabulary]`."""
        ids, mask = self._started(batch)
        logits: torch.Tensor = model(ids[:, :-1], mask[:, :-1])
        return logits

    def targets(self, batch: Batch) -> torch.Tensor:
        """Return the bytes that the latents predict."""
        ids, mask = self._started(batch)
        latents = min(self.model_config.num_latents, ids.shape[1] - 1)
        counted = mask[:, -latents:] & mask[:, -latents - 1 : -1]
        return ids[:, -latents:].masked_fill(~counted, IGNORED)

    def model_inputs(self, batch: Batch) -> tuple[BatchInputs, BatchMask]:
        """Return the texts after the token BOS, without their last bytes."""
        ids, mask = self._started(batch)
        return ids[:, :-1], mask[:, :-1]

    def answers(self, model: Any, batch: Batch) -> list[torch.Tensor]:
        """Return the tokens that follow each text."""
        ids, mask = self._started(batch)
        generator = torch.Generator(device=ids.device).manual_seed(SEED)
        found = []
        for row, valid in zip(ids, mask, strict=True):  # each as if it were asked alone
            prompt = row[valid][-self.model_config.max_length :]
            whole = generate(
                model,
                prompt.unsqueeze(0),
                self.continue_bytes,
                temperature=self.temperature,
                top_k=self.top_k,
                generator=generator.manual_seed(SEED),
                sliding=True,
            )
            found.append(whole[0, len(prompt) :])
        return found

    def predictions(self, outputs: Any, sources: Sequence[str]) -> list[Prediction]:
        """Return the continuations from `answers`."""
        return [
            ContinuedText(source, decode_bytes(ids), None)
            for source, ids in zip(sources, outputs, strict=True)
        ]

    def _started(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the texts after the token BOS, padded on the left, and their mask.

        Returns:
            int64 and bool `[batch, 1 + length]`.
        """
        if "started" not in batch.cache:
            ids, mask = batch.inputs, batch.mask
            assert isinstance(ids, torch.Tensor)
            valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            assert isinstance(valid, torch.Tensor)
            lengths = valid.sum(dim=1, keepdim=True)
            columns = torch.arange(-1, ids.shape[1], device=ids.device) + lengths - ids.shape[1]
            moved = ids.gather(1, columns.clamp(min=0))
            moved = moved.masked_fill(columns < 0, PAD).masked_fill(columns == -1, BOS)
            batch.cache["started"] = (moved, columns >= -1)
        found: tuple[torch.Tensor, torch.Tensor] = batch.cache["started"]
        return found
