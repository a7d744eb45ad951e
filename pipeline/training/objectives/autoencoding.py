"""Autoencoding: the model gives its own input back (Perceiver IO, section 4.3)."""

import io
import math
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from perceiver_model.adapters.configs import AudioInput
from perceiver_model.families.autoencoder import MultimodalAutoencoder
from perceiver_model.families.autoencoder_config import AutoencoderConfig, VectorOutput
from pipeline.training.objectives.answers import ClassAnswers, Shown
from pipeline.training.objectives.base import Objective, read_names
from pipeline.training.objectives.batch import Batch
from pipeline.training.objectives.prediction import Prediction, answer_of

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from pipeline.config.tree import Config
    from shards import ShardSet

LABEL = "label"
PEAK = 1.0
"""The largest value of a pixel, for the peak signal-to-noise ratio."""
_SMALLEST = 1e-10
"""The smallest squared error of a ratio, which is then 100 dB."""


@dataclass(frozen=True)
class Reconstruction(Prediction):
    """What the model gives back for one input.

    Attributes:
        source: The same as in `ClassPrediction`.
        image: The image as PNG; None if the model reads none.
        video: The film as an animated PNG; None if the model reads none.
        audio: The sound as WAV; None if the model reads none.
        label: The most probable class; None if the model has none.
        error: Why the input cannot be used; None if it can.
    """

    source: str
    image: bytes | None
    video: bytes | None
    audio: bytes | None
    label: str | None
    error: str | None


@dataclass(frozen=True)
class Autoencoding(Objective):
    """Train with the weighted sum of the outputs' errors; select by the same sum.

    Attributes:
        model_config: The configuration of the autoencoder.
        weights: The weight of each output in the loss, by name.
        loss: `l1` or `mse`, the error of pixels and sounds.
        train_queries: The number of queries of each output in a training step; None for all.
        chunk_queries: The number of queries that an evaluation decodes at a time.
        classes: The names of the classes; empty if the class is no output.
    """

    name: ClassVar = "autoencode"
    target: ClassVar = "none"
    prediction: ClassVar = Reconstruction
    metrics: ClassVar = ("reconstruction_error",)
    num_sums: ClassVar = 1
    selection: ClassVar = "reconstruction_error"
    higher_is_better: ClassVar = False
    worst: ClassVar = math.inf
    graph_refusal: ClassVar = "its outputs have names, and are decoded in pieces"
    card_fields: ClassVar = frozenset({"model", "weights", "loss", "chunk_queries", "classes"})

    model_config: AutoencoderConfig
    weights: Mapping[str, float] = field(default_factory=dict)
    loss: str = "l1"
    train_queries: int | None = None
    chunk_queries: int = 8192
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: "Config", shard_set: "ShardSet") -> Self:
        """Return the objective of a training."""
        options: Any = config.trained_for
        manifest = shard_set.manifest
        has_class = config.data.target.kind == "class"
        return cls(
            options.model(config, len(manifest.classes), manifest.config),
            dict(options.weights),
            options.loss,
            options.train_queries,
            options.chunk_queries,
            manifest.classes if has_class else (),
        )

    @classmethod
    def from_card(cls, values: Mapping[str, Any]) -> Self:
        """Return the objective of a registered model.

        Raises:
            ValueError: A value is not allowed, or the classes are not the model's.
        """
        model = AutoencoderConfig.from_dict(values["model"])
        classes, chunk = read_names(values["classes"]), values["chunk_queries"]
        weights = {name: float(weight) for name, weight in values["weights"].items()}
        label = model.outputs.get(LABEL)
        if len(classes) != (label.num_channels if isinstance(label, VectorOutput) else 0):
            raise ValueError(f"{len(classes)} classes are not those of the model")
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"chunk_queries is {chunk!r}; must be an integer of at least 1")
        if values["loss"] not in _ERRORS or not weights.keys() <= model.outputs.keys():
            raise ValueError("the loss or a weight is of no output")
        return cls(model, weights, values["loss"], None, chunk, classes)

    def to_card(self) -> dict[str, Any]:
        """Return the model's configuration, and how its errors are weighed."""
        return {
            "model": self.model_config.to_dict(),
            "weights": dict(self.weights),
            "loss": self.loss,
            "chunk_queries": self.chunk_queries,
            "classes": list(self.classes),
        }

    def build_model(self, positions: torch.Tensor | None = None) -> MultimodalAutoencoder:
        """Return a model with new weights."""
        return MultimodalAutoencoder(self.model_config)

    def outputs(self, model: Any, batch: Batch, *, training: bool) -> dict[str, torch.Tensor]:
        """Return the outputs by name, `[batch, queries, channels]`; classes `[batch, classes]`.

        Training decodes some of the queries, which are the same for all samples of a step.
        """
        indices = self._indices(batch) if training else dict.fromkeys(self.model_config.outputs)
        found: dict[str, torch.Tensor] = model(
            self._inputs(batch, training),
            self._masks(batch),
            indices=indices,
            chunk_size=None if training else self.chunk_queries,
        )
        return {
            name: output if name == LABEL else output.flatten(1, -2)
            for name, output in found.items()
        }

    def losses(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, *, training: bool
    ) -> torch.Tensor:
        """Return the weighted sum of each sample's errors, `[batch]`.

        An output that a sample lacks in its input has no error.
        """
        total = torch.zeros_like(batch.weights)
        for name, output in outputs.items():
            if name == LABEL:
                error = F.cross_entropy(output, batch.targets, ignore_index=-1, reduction="none")
            else:
                target, counted = self._target(name, batch, training)
                error = _mean(_ERRORS[self.loss](output, target, reduction="none"), counted)
            total = total + self.weights.get(name, 1.0) * error
        return total

    def sums(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return the sum of the samples' errors, `[1]`."""
        training = batch.cache.get("training", False)
        return (self.losses(outputs, batch, training=training) * batch.weights).sum().unsqueeze(0)

    def metric_values(self, sums: Sequence[float], weight: float) -> tuple[float, ...]:
        """Return the mean of the samples' errors."""
        return (sums[0] / weight,)

    def measures(self) -> "MetricCollection":
        """Return a measure of each output.

        `image_psnr` and `video_psnr` are peak signal-to-noise ratios in dB, `audio_error` is the
        mean absolute error of samples in [-1, 1], and `label_accuracy` is the share of right
        classes.
        """
        from torchmetrics import MetricCollection

        from pipeline.training.objectives.column_mean import ColumnMean

        names = [self._measure(name) for name in self.model_config.outputs]
        return MetricCollection(
            {name: ColumnMean(column) for column, name in enumerate(names)},
            compute_groups=False,
        )

    def measured(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each good sample's measures, float64, and which it has, `[samples, outputs]`."""
        values, present = [], []
        for name, output in outputs.items():
            if name == LABEL:
                values.append((output.argmax(dim=1) == batch.targets).double())
                present.append(batch.targets >= 0)
                continue
            target, counted = self._target(name, batch, training=False)
            if self._measure(name).endswith("_psnr"):
                error = _mean((output - target) ** 2, counted).double().clamp(min=_SMALLEST)
                values.append(10 * torch.log10(PEAK**2 / error))
            else:
                values.append(_mean((output - target).abs(), counted).double())
            present.append(counted.flatten(1).any(dim=1))
        return torch.stack(values, dim=1)[batch.good], torch.stack(present, dim=1)[batch.good]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty if the class is no output."""
        return self.classes

    def class_answers(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> ClassAnswers | None:
        """Return the classes of the good samples, if the class is an output."""
        if LABEL not in outputs:
            return None
        counted = batch.good & (batch.targets >= 0)
        return ClassAnswers.of(outputs[LABEL], batch.targets, counted)

    def shown(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> list[Shown]:
        """Return the true class, if the class is an output, and what the model gives back."""
        found = self.predictions(outputs, [""] * len(batch.weights))
        return [
            Shown(self.classes[number] if self.classes and number >= 0 else None, answer_of(each))
            for number, each in zip(batch.targets.tolist(), found, strict=True)
        ]

    def predictions(
        self, outputs: Mapping[str, torch.Tensor], sources: Sequence[str]
    ) -> list[Prediction]:
        """Return what the model gives back, as files."""
        columns = {name: self._answers_of(name, output) for name, output in outputs.items()}
        absent: list[Any] = [None] * len(sources)
        return [
            Reconstruction(source, image, video, audio, label, None)
            for source, image, video, audio, label in zip(
                sources,
                columns.get("image", absent),
                columns.get("video", absent),
                columns.get("audio", absent),
                columns.get(LABEL, absent),
                strict=True,
            )
        ]

    def finite(self, outputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return for which samples all outputs are finite numbers, bool `[batch]`."""
        each = [torch.isfinite(output.flatten(1)).all(dim=1) for output in outputs.values()]
        return torch.stack(each).all(dim=0).cpu().numpy()

    def sample_values(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch, classes: tuple[str, ...]
    ) -> np.ndarray:
        """Return the weighted sum of each sample's errors."""
        return self.losses(outputs, batch, training=False).double().cpu().numpy()

    def _measure(self, name: str) -> str:
        if name == LABEL:
            return "label_accuracy"
        media = self.model_config.input.modalities[name].input
        return f"{name}_error" if isinstance(media, AudioInput) else f"{name}_psnr"

    def _inputs(self, batch: Batch, training: bool) -> dict[str, Any]:
        given = batch.inputs
        names = [name for name in self.model_config.input.modalities if name != LABEL]
        inputs: dict[str, Any] = dict(given) if isinstance(given, dict) else {names[0]: given}
        if self.classes:
            # In evaluations, mask tokens stand for the class.
            inputs[LABEL] = batch.targets.clamp(min=0) if training else None
        return inputs

    def _masks(self, batch: Batch) -> dict[str, Any]:
        if isinstance(batch.inputs, dict):
            return dict(batch.mask) if isinstance(batch.mask, dict) else {}
        names = [name for name in self.model_config.input.modalities if name != LABEL]
        return {} if batch.mask is None else {names[0]: batch.mask}

    def _indices(self, batch: Batch) -> dict[str, torch.Tensor | None]:
        """Return the queries of a training step, int64 `[queries]`, the same on all ranks."""
        batch.cache["training"] = True
        if "indices" not in batch.cache:
            generator = torch.Generator().manual_seed(batch.seed)
            found: dict[str, torch.Tensor | None] = {}
            for name, output in self.model_config.outputs.items():
                total, wanted = output.num_outputs, self.train_queries
                if wanted is None or wanted >= total:
                    found[name] = torch.arange(total, device=batch.weights.device)
                else:
                    drawn = torch.randperm(total, generator=generator)[:wanted]
                    found[name] = drawn.to(batch.weights.device)
                if name == LABEL:
                    found[name] = None
            batch.cache["indices"] = found
        indices: dict[str, torch.Tensor | None] = batch.cache["indices"]
        return indices

    def _target(self, name: str, batch: Batch, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what an output should be, and which of it counts, `[batch, queries, channels]`."""
        output = self.model_config.outputs[name]
        media = self._inputs(batch, training=False)[name]
        if not media.is_floating_point():
            media = media.float() / (32768 if media.dtype == torch.int16 else 255)
        target = media.reshape(len(media), output.num_outputs, output.num_channels)
        mask = self._masks(batch).get(name)
        if mask is None:
            counted = torch.ones_like(target, dtype=torch.bool)
        elif mask.numel() == target.numel():
            counted = mask.reshape(target.shape)
        else:  # a pixel's mask has no channels
            counted = mask.reshape(len(mask), -1, 1)
            repeats = output.num_outputs // counted.shape[1]
            counted = counted.repeat_interleave(repeats, dim=1).expand(target.shape)
        indices = self._indices(batch)[name] if training else None
        if indices is not None:
            target, counted = target[:, indices], counted[:, indices]
        return target, counted

    def _answers_of(self, name: str, output: torch.Tensor) -> list[Any]:
        if name == LABEL:
            return [self.classes[number] for number in output.argmax(dim=1).tolist()]
        media = self.model_config.input.modalities[name].input
        values = output.float().cpu().numpy()
        if isinstance(media, AudioInput):
            return [_wav(row.ravel(), media.sample_rate) for row in values]
        grid = self.model_config.outputs[name].grid  # type: ignore[union-attr]  # of pixels
        frames = values.reshape(len(values), -1, *grid[-2:], media.channels)  # type: ignore[union-attr]  # images and films have channels
        pixels = np.rint(frames.clip(0, 1) * 255).astype(np.uint8)
        return [_png(row) for row in pixels]


_ERRORS: dict[str, Any] = {"l1": F.l1_loss, "mse": F.mse_loss}


def _mean(errors: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the mean of each sample's errors that count, `[batch]`; 0 if none does."""
    total = (errors * counted).flatten(1).sum(dim=1)
    return total / counted.flatten(1).sum(dim=1).clamp(min=1)


def _png(frames: np.ndarray) -> bytes:
    """Return frames `[frames, height, width, channels]`, uint8, as PNG; several are animated."""
    images = [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame)
              for frame in frames]  # fmt: skip
    buffer = io.BytesIO()
    images[0].save(buffer, format="PNG", save_all=len(images) > 1, append_images=images[1:])
    return buffer.getvalue()


def _wav(samples: np.ndarray, sample_rate: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.rint(samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
