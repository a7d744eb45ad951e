"""Export a model's inference as a graph of torch's own operators, or as an ONNX file.

Each export is run and compared with the model before it is returned or saved.
"""

import copy
import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree  # torch.export flattens arguments with it.

from perceiver_model.adapters.table import TableRows
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.constants import Float32Constant

ExportPath = Literal["reference", "fused", "factored"]
"""The attention paths that use only torch's own operators."""

# Without this, a program that takes rows of a table cannot be saved.
pytree._register_namedtuple(TableRows, serialized_type_name="perceiver_model.TableRows")

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_program(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    example_keywords: Mapping[str, Any] | None = None,
    *,
    attention_path: ExportPath = "fused",
    dynamic_batch: bool = True,
    tolerance: float = 1e-5,
) -> ExportedProgram:
    """Export `model(*example_inputs, **example_keywords)` in evaluation mode with `torch.export`.

    The program has its own copy of the weights, and the model is not changed. The examples fix the
    inputs of the program, except for the batch size: it takes a mask if and only if the examples
    have one. `torch.export.save` writes the program. `torch.export.load` does not need this
    package, except this module if the program takes `TableRows`.

    Args:
        model: The model.
        example_inputs: Examples of the positional arguments.
        example_keywords: Examples of the keyword arguments.
        attention_path: How the program computes attention, whatever the model's own path.
        dynamic_batch: Whether the program takes batches of any size. If so, the first dimension of
            every tensor in the examples must be the batch.
        tolerance: The largest allowed difference between the program's results and the model's,
            relative to the larger of 1 and the largest result.

    Raises:
        ValueError: If the attention path is not allowed, the examples differ in their batch size,
            or the results differ by more than the tolerance.
    """
    options = (attention_path, dynamic_batch, tolerance)
    return _checked_program(model, tuple(example_inputs), dict(example_keywords or {}), *options)[0]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: tuple[Any, ...],
    example_keywords: Mapping[str, Any] | None = None,
    *,
    attention_path: ExportPath = "fused",
    dynamic_batch: bool = True,
    tolerance: float = 1e-5,
) -> None:
    """Export the program of `export_program` as an ONNX file, after ONNX Runtime has run it.

    The inputs of the file have the names of the parameters of the model's `forward`. Weights of
    more than 1.5 GiB go to a separate file beside it. The arguments are those of `export_program`.

    Args:
        path: The path of the ONNX file.

    Raises:
        ImportError: If the packages of the extra `export` are missing.
        ValueError: As `export_program` does, and if ONNX Runtime's results differ. Nothing is
            written then.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX export needs {', '.join(missing)}: pip install 'perceiver-pipeline[export]'"
        )
    inputs, keywords = tuple(example_inputs), dict(example_keywords or {})
    options = (attention_path, dynamic_batch, tolerance)
    program, expected = _checked_program(model, inputs, keywords, *options)
    onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx_program is not None  # Only a TorchScript model gives None.
    try:
        _check_equal(onnx_program(*inputs, **keywords), expected, tolerance, "the ONNX file")
        onnx_program.save(path)
    finally:
        onnx_program.release()


def _checked_program(
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
    attention_path: ExportPath,
    dynamic_batch: bool,
    tolerance: float,
) -> tuple[ExportedProgram, Any]:
    """Return the program, and the model's own results for the examples."""
    if attention_path not in ("reference", "fused", "factored"):
        raise ValueError(
            f"attention path {attention_path!r}: must be reference, fused or factored, "
            "which need no operators but torch's"
        )
    # A compiled model keeps the original in `_orig_mod`.
    copied = copy.deepcopy(getattr(model, "_orig_mod", model)).eval()
    with torch.no_grad():
        expected = copied(*inputs, **keywords)
        set_attention_path(copied, attention_path)
        _unpack_constants(copied)
        program = _export(copied, inputs, keywords, dynamic_batch)
        result = program.module()(*inputs, **keywords)
    _check_equal(pytree.tree_leaves(result), expected, tolerance, "the exported program")
    program.example_inputs = None  # A saved program must not contain a user's data.
    return program, expected


class _Buffer(nn.Module):
    """A constant stored as floats.

    A program is not cast, and ONNX cannot view an integer as the bits of a float.
    """

    values: torch.Tensor

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.clone())

    def forward(self) -> torch.Tensor:
        return self.values


def _unpack_constants(model: nn.Module) -> None:
    """Replace each `Float32Constant` in a model by a buffer of floats."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Float32Constant):
            model.set_submodule(name, _Buffer(module()))


def _export(
    model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], dynamic_batch: bool
) -> ExportedProgram:
    if not dynamic_batch:
        return torch.export.export(model, inputs, keywords)
    tensors = [
        leaf for leaf in pytree.tree_leaves((inputs, keywords)) if isinstance(leaf, torch.Tensor)
    ]
    sizes = {tensor.shape[0] if tensor.ndim else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"examples of shapes {[list(tensor.shape) for tensor in tensors]}: the first dimension "
            "of each must be the batch, or dynamic_batch False"
        )
    # torch.export treats a batch of one as a constant.
    inputs, keywords = pytree.tree_map_only(
        torch.Tensor, lambda tensor: torch.cat([tensor, tensor]), (inputs, keywords)
    )
    batch = Dim("batch")
    arguments = inspect.signature(model.forward).bind(*inputs, **keywords).arguments
    shapes = pytree.tree_map(
        lambda leaf: {0: batch} if isinstance(leaf, torch.Tensor) else None, dict(arguments)
    )
    return torch.export.export(model, inputs, keywords, dynamic_shapes=shapes)


def _check_equal(result: Any, expected: Any, tolerance: float, what: str) -> None:
    """Check that two results are equal within the tolerance.

    Args:
        result: The tensors to check, as a flat sequence.
        expected: The expected tensors, in any nesting.
        tolerance: The largest allowed difference, relative to the larger of 1 and the largest
            value.
        what: The name of the result in the error.

    Raises:
        ValueError: If they differ by more than the tolerance.
    """
    for got, wanted in zip(result, pytree.tree_leaves(expected), strict=True):
        if not isinstance(wanted, torch.Tensor) or wanted.numel() == 0:
            continue
        scale = max(1.0, wanted.abs().max().item())
        apart = got.to(wanted.device, torch.float64) - wanted.double()
        difference = apart.abs().max().item() / scale
        # This form also refuses NaN.
        if not difference <= tolerance:
            raise ValueError(
                f"{what}: its results differ from the model's by up to {difference:.1e} of the "
                f"largest, more than the tolerance of {tolerance:.1e}"
            )
