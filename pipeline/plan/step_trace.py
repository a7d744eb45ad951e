"""One training step on tensors without data: its memory to the byte, and its arithmetic."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from perceiver_model.adapters.multimodal import MultimodalAdapter
from pipeline.config.tree import Config
from pipeline.inputs.collate import joint_inputs
from pipeline.inputs.modality import inputs_of
from pipeline.media.format import MediaFormat
from pipeline.media.registered import modality_of
from pipeline.plan.live_tensors import ALIGNMENT, LiveTensors, Operation
from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.carried import Carried, read_part
from pipeline.training.precision import compute_as, products_in

CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What products are computed in, by the precisions that are not float32."""


@dataclass(frozen=True)
class StepTrace:
    """What one micro-batch takes. All sizes are in bytes.

    Attributes:
        micro_batch: The number of samples of the micro-batch.
        saved: What is alive after the forward pass: what the backward pass needs.
        peak: The most that was alive in both passes, without weights and gradients.
        peak_with_gradients: The most that was alive, with gradients, which are kept until the step.
        largest_gradient: The size of the largest parameter.
        inputs: The size of the batch as it is copied to the device.
        operations: All operations, in order.
        seconds: The time that it took to find out, in seconds.
    """

    micro_batch: int
    saved: int
    peak: int
    peak_with_gradients: int
    largest_gradient: int
    inputs: int
    operations: list[Operation] = field(repr=False)
    seconds: float

    def flops(self) -> tuple[int, int, int]:
        """Return the FLOPs of the forward pass, the backward pass, and of what is done again."""
        forward = sum(op.flops for op in self.operations if not op.backward)
        again = sum(op.flops for op in self.operations if op.again)
        backward = sum(op.flops for op in self.operations if op.backward and not op.again)
        return forward, backward, again


@dataclass(frozen=True)
class _PlannedBatch(Batch):
    """A batch whose random numbers have no values."""

    def random(self, columns: int, *, stream: int = 0) -> torch.Tensor:
        """Return float32 `[batch, columns]`."""
        return torch.zeros(len(self.numbers), columns)


def build_on_meta(objective: Objective, config: Config) -> nn.Module:
    """Return the model of a training, without memory for its weights.

    With the precision `fp8` it is that of `bf16`: the casts between the two are fused with other
    operations on a GPU, and are not modelled.
    """
    precision = config.training.precision
    with torch.device("meta"):
        model = objective.build_model()
    compute_as(model, "bf16" if precision == "fp8" else precision, config.training.attention_path)
    if hasattr(model, "encoder"):  # a Perceiver AR has none
        encoder: Any = model.encoder
        encoder.checkpointed_share = config.training.activation_checkpointing
    return model


def trace_step(
    model: nn.Module, objective: Objective, config: Config, micro_batch: int, num_classes: int
) -> StepTrace:
    """Run forward and backward for one micro-batch on fake tensors.

    The operations are those that a CPU runs. A GPU runs the same ones.

    Args:
        model: The model, from `build_on_meta`.
        objective: What it is trained for.
        config: The configuration.
        micro_batch: The number of samples, without the views of `training.augment.views`.
        num_classes: The number of classes or labels.
    """
    started = time.monotonic()
    operations: list[Operation] = []
    whole = not config.data.allow_missing
    live = LiveTensors(truth=whole, note=operations.append, alignment=ALIGNMENT)
    size = micro_batch * config.training.augment.views
    parts = config.training.stream.parts_per_step if config.training.stream else 1
    with FakeTensorMode(allow_non_fake_inputs=True), _faked(model), live:
        for tensor in (*model.parameters(), *model.buffers()):
            live.add(tensor)
        weights = live.live
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(live.take_gradient)
        model.train()
        batches = [example_batch(config, objective, size, num_classes) for _ in range(parts)]
        give_draws(model, size)
        inputs = live.live - weights
        live.restart()
        loss = batch_loss(model, objective, config, batches)
        saved = live.live - weights
        live.backward = True
        loss.backward()
        largest = max((p.numel() * p.element_size() for p in model.parameters()), default=0)
        return StepTrace(
            micro_batch=micro_batch,
            saved=saved,
            peak=live.peak - weights,
            peak_with_gradients=live.peak_with_gradients - weights,
            largest_gradient=largest,
            inputs=inputs,
            operations=operations,
            seconds=time.monotonic() - started,
        )


@contextlib.contextmanager
def _faked(model: nn.Module) -> Iterator[None]:
    """Let a model on the meta device have fake tensors of the CPU in the body."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    made: dict[int, Any] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = fake
                kept.append((own, name, tensor))
                own[name] = made[id(tensor)]
    try:
        yield
    finally:
        for own, name, tensor in kept:
            own[name] = tensor


def batch_loss(
    model: Any, objective: Objective, config: Config, batches: list[Batch]
) -> torch.Tensor:
    """Return the loss of the parts of a micro-batch, as a training computes it."""
    dtype = DTYPES.get(products_in(config.training.precision))

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return model(*args, **kwargs)

    losses, carried = [], _carried(config, len(batches[0].weights))
    for batch in batches:
        of_sample = objective.loss_weights(batch)
        if carried is None:
            outputs = objective.outputs(run, batch, training=True)
        else:
            outputs, carried = read_part(objective, run, batch, batch.good, carried)
        losses.append((objective.losses(outputs, batch, training=True) * of_sample).sum())
        with torch.no_grad():
            objective.sums(outputs, batch)
    return torch.stack(losses).sum()


def _carried(config: Config, size: int) -> Carried | None:
    """Return the latents that streams carry into a step; None if samples are read alone."""
    if config.training.stream is None:
        return None
    encoder = config.model.encoder
    latents = torch.empty(size, encoder.num_latents, encoder.latent_dim)
    return Carried(latents, torch.zeros(size, dtype=torch.bool))


def give_draws(model: nn.Module, size: int) -> None:
    """Give a model of several modalities the numbers with which it drops and masks some."""
    for adapter in model.modules():
        if isinstance(adapter, MultimodalAdapter):
            for name, part in adapter.modalities.items():
                if part.dropout or part.mask_probability is not None:
                    grid = 0 if part.mask_probability is None else torch.Size(part.token_grid)
                    tokens = grid.numel() if isinstance(grid, torch.Size) else grid
                    adapter.uniforms[name] = torch.empty(size, 1 + tokens)


def example_batch(config: Config, objective: Objective, size: int, num_classes: int) -> Batch:
    """Return a batch of the longest samples that the formats allow."""
    rows, lengths = {}, {}
    for name, fmt in config.data.formats.items():
        shape, dtype = stored_type(fmt)
        rows[name] = torch.zeros((size, *shape), dtype=dtype)
        lengths[name] = torch.full((size,), shape[0] if shape else 1)
    inputs, mask = joint_inputs(rows, lengths, config.data.formats)
    targets = _targets(config, objective, size, num_classes)
    length = targets.shape[1] if targets.ndim > 1 else 1
    return _PlannedBatch(
        inputs=inputs,
        mask=mask,
        targets=targets,
        target_lengths=torch.full((size,), length),
        weights=torch.ones(size),
        numbers=torch.arange(size),
    )


def stored_type(fmt: MediaFormat) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and the dtype of the longest array of a format, as a model reads it."""
    dtype, shape = modality_of(fmt).array_type(fmt)
    if (full := inputs_of(fmt).full_length(fmt)) is not None:
        shape = (full, *shape[1:])
    if (features := getattr(fmt, "fourier", None)) is not None:
        shape = (*shape[:-1], features.channels)
    return shape, getattr(torch, dtype.name)


def _targets(config: Config, objective: Objective, size: int, num_classes: int) -> torch.Tensor:
    target, kind = config.data.target, objective.target
    if kind == "multi_label":
        return torch.zeros(size, num_classes, dtype=torch.uint8)
    if kind == "regression":
        return torch.zeros(size, target.length)
    if kind == "mask":
        image: Any = getattr(objective.model_config, "input", None)
        return torch.zeros(size, image.height, image.width, dtype=torch.uint8)
    if kind == "tokens":
        return torch.zeros(size, target.max_length or 1, dtype=torch.int32)
    return torch.zeros(size, dtype=torch.int64)
