"""A model's outputs as a graph that any ONNX runtime computes, beside the model itself."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from perceiver_model.export import export_onnx
from pipeline.errors import UserError
from pipeline.inputs.collate import BatchInputs, BatchMask, collate_samples
from pipeline.inputs.modality import inputs_of
from pipeline.media import MediaFormat
from pipeline.media.registered import modality_of
from pipeline.registry.served.card import ModelCard
from pipeline.training.objectives import Batch, Objective

ONNX_FOLDER, ONNX_FILE = "onnx", "model.onnx"
TOLERANCE = 1e-4
"""How much ONNX Runtime's results may differ from torch's, relative to the larger of 1 and the
largest result.
"""

_CHECKED_BATCH = 3


class _Graph(nn.Module):
    """A model that takes inputs and mask alone, and gives the objective's outputs."""

    def __init__(self, objective: Objective, model: nn.Module) -> None:
        super().__init__()
        self._objective, self.model = objective, model

    def forward(self, inputs: Any, mask: Any = None) -> Any:
        """Return the outputs, `[batch, …]`."""
        (size, *_), device = _first(inputs).shape, _first(inputs).device
        batch = Batch(
            inputs,
            mask,
            targets=torch.zeros(size, dtype=torch.int64, device=device),
            target_lengths=torch.zeros(size, dtype=torch.int64, device=device),
            weights=torch.ones(size, device=device),
            numbers=torch.arange(size, device=device),
        )
        objective = self._objective
        return objective.outputs(self.model, objective.as_asked(batch), training=False)


def check_onnx(card: ModelCard) -> None:
    """Refuse a model that is no graph, and an export without its packages.

    Args:
        card: The card of the model.

    Raises:
        UserError: The text says why.
    """
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: pip install 'perceiver-pipeline[export]'"
        )
    name, reason = card.objective.name, card.objective.graph_refusal
    if card.is_stream:
        reason = "a model of streams carries its latents from part to part"
    if reason is not None:
        raise UserError(f"ONNX: a model of the objective {name!r} cannot be exported: {reason}")


def write_onnx(card: ModelCard, weights: dict[str, torch.Tensor], folder: Path) -> Path:
    """Write `model.onnx`, after ONNX Runtime has given torch's results for two sizes of batches.

    The graph takes `inputs` and, if the model does, `mask`, as `pipeline.inputs.collate` makes
    them, of any batch size; it gives the objective's outputs. Of several modalities, each has its
    own input and, but for rows, its own mask. The metadata have the model's card.

    Args:
        card: The card of the model.
        weights: The weights by name.
        folder: An existing folder. Weights above 1.5 GiB are a second file in it.

    Raises:
        UserError: The model cannot be exported, or the results differ.
    """
    check_onnx(card)
    model = card.objective.build_model()
    model.load_state_dict(weights)
    graph, path = _Graph(card.objective, model).eval(), folder / ONNX_FILE
    examples = [_example(card, size) for size in (1, max(_CHECKED_BATCH, 1 + len(card.formats)))]
    try:
        with _quiet_exporter():
            export_onnx(graph, path, examples[0], tolerance=TOLERANCE)
    except Exception as error:  # torch's exporter raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"ONNX: this model of {card.objective.name!r} cannot be exported: {reason}"
        ) from error
    _add_metadata(path, card)
    _check(path, graph, examples[1])
    return path


def _add_metadata(path: Path, card: ModelCard) -> None:
    """Put the card's facts into the file. The weights are not read."""
    import onnx

    file = onnx.load(path, load_external_data=False)
    _rename(file.graph)
    about = json.loads(card.to_json())
    names = {key: about[key] for key in ("classes", "labels", "names") if key in about}
    values = {"objective": card.objective.name, "media": about["media"], **names}
    onnx.helper.set_model_props(
        file,
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
        },
    )
    onnx.save(file, path)


def _rename(graph: Any) -> None:
    """Call the only output `outputs`, and the first dimension of all inputs and outputs `batch`."""
    size = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if size and dim.dim_param == size:
                dim.dim_param = "batch"
    if len(graph.output) != 1:
        return
    before, graph.output[0].name = graph.output[0].name, "outputs"
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == before:
                    names[place] = "outputs"


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks on packages that it does without off the console."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check(path: Path, graph: nn.Module, example: tuple[Any, ...]) -> None:
    """Compare ONNX Runtime's results for a batch of another size.

    Raises:
        UserError: They differ.
    """
    import onnxruntime
    from torch.utils import _pytree as pytree

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    names = [one.name for one in session.get_inputs()]
    found = session.run(
        None, {name: each.numpy() for name, each in zip(names, tensors, strict=True)}
    )
    with torch.no_grad():
        wanted = pytree.tree_leaves(graph(*example))
    for got, tensor in zip(found, wanted, strict=True):
        expected = tensor.double().numpy()
        scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
        apart = float(np.abs(got - expected).max(initial=0.0)) / scale
        if not apart <= TOLERANCE:  # this form also refuses NaN
            raise UserError(
                f"ONNX: results for {len(tensors[0])} inputs differ from torch's by {apart:.1e} of "
                f"the largest, more than {TOLERANCE:g}"
            )


def _example(card: ModelCard, size: int) -> tuple[BatchInputs, BatchMask] | tuple[BatchInputs]:
    """Return inputs, and a mask if the model takes one. The values are drawn at random.

    Of several modalities, each sample after the first lacks another one. Of a single modality with
    a mask, the second half of each sample after the first is masked.
    """
    random, others = np.random.default_rng(size), torch.arange(size) > 0
    samples = [
        {name: _values(fmt, random) for name, fmt in card.formats.items()} for _ in range(size)
    ]
    inputs, mask = collate_samples(samples, card.formats)
    if isinstance(mask, torch.Tensor):
        mask[others, mask.shape[1] // 2 :] = False
        return inputs, mask
    if not isinstance(inputs, dict):
        return (inputs,)
    masks: dict[str, torch.Tensor] = {}
    for number, (name, fmt) in enumerate(card.formats.items()):
        present = torch.arange(size) != number + 1
        of_present = inputs_of(fmt).mask_of_present(present, fmt)
        if mask and name in mask:
            masks[name] = mask[name].clone()
            masks[name][~present] = False
        elif of_present is not None:
            masks[name] = of_present.clone()
    return (inputs, masks) if masks else (inputs,)


def _values(fmt: MediaFormat, random: np.random.Generator) -> np.ndarray:
    """Return an array of the longest shape of a format; categories of a table are missing."""
    modality = modality_of(fmt)
    dtype, shape = modality.array_type(fmt)
    if modality.source == "row":
        is_number = [column.role == "number" for column in modality.columns(fmt)]
        return np.where(is_number, random.normal(size=shape), 0.0).astype(dtype)
    if dtype == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    return np.clip(random.normal(scale=0.3, size=shape), -1, 1).astype(dtype)


def _first(inputs: Any) -> torch.Tensor:
    from torch.utils import _pytree as pytree

    return next(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))
