"""Export: a model's inference as a graph of torch's own operators, or as an ONNX file.

Both are run and compared with the model before they are handed out.
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
from torch.utils import _pytree as pytree  # It is how torch.export takes arguments apart.

from perceiver_model.adapters.table import TableRows
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.constants import Float32Constant

ExportPath = Literal["reference", "fused", "factored"]
"""The attention paths that are made of torch's own operators alone."""

# So that a program that takes rows of a table can be saved.
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
    """`model(*example_inputs, **example_keywords)` in evaluation mode, by `torch.export`.

    The program has its own copy of the weights, and the model is left as it is. What it takes is
    fixed by the examples but for the batch: a mask if there is one among them, and only then.
    `torch.export.save` writes it, and `torch.export.load` needs nothing of this package, but for
    `TableRows` this module.

    Args:
        attention_path: how the program computes attention, whatever the model's own path.
        dynamic_batch: whether the program takes batches of any size. The first dimension of every
            tensor among the examples has to be the batch then.
        tolerance: how far the program's results may be from the model's by its own path, relative
            to the largest of them or to 1.

    Raises ValueError for another attention path, for examples that differ in their batch's size,
    and for results beyond the tolerance.
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
    """Writes what `export_program` gives as an ONNX file, once ONNX Runtime has run it.

    The file's inputs have the names of the parameters of the model's `forward`. Weights of more
    than 1.5 GiB go to a file of their own beside it. Arguments are those of `export_program`.

    Raises ImportError without the packages of the extra `export`, and ValueError as
    `export_program` does, of ONNX Runtime's results too; then nothing is written.
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
    assert onnx_program is not None  # It is None of a TorchScript model only.
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
    """The program and the model's own results for the examples."""
    if attention_path not in ("reference", "fused", "factored"):
        raise ValueError(
            f"attention path {attention_path!r}: must be reference, fused or factored, "
            "which need no operators but torch's"
        )
    copied = copy.deepcopy(getattr(model, "_orig_mod", model)).eval()  # Not the compiled wrapper.
    with torch.no_grad():
        expected = copied(*inputs, **keywords)
        set_attention_path(copied, attention_path)
        _unpack_constants(copied)
        program = _export(copied, inputs, keywords, dynamic_batch)
        result = program.module()(*inputs, **keywords)
    _check_equal(pytree.tree_leaves(result), expected, tolerance, "the exported program")
    program.example_inputs = None  # Nobody's data, in a saved program.
    return program, expected


class _Buffer(nn.Module):
    """A constant as floats: a program isn't cast, and ONNX can't view an integer as its bits."""

    values: torch.Tensor

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.clone())

    def forward(self) -> torch.Tensor:
        return self.values


def _unpack_constants(model: nn.Module) -> None:
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
    # A batch of one would be taken for a constant.
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
    """Raises ValueError unless tensors are equal to the tolerance; result: a flat sequence."""
    for got, wanted in zip(result, pytree.tree_leaves(expected), strict=True):
        if not isinstance(wanted, torch.Tensor) or wanted.numel() == 0:
            continue
        scale = max(1.0, wanted.abs().max().item())
        apart = got.to(wanted.device, torch.float64) - wanted.double()
        difference = apart.abs().max().item() / scale
        # Written so that nan is refused, too.
        if not difference <= tolerance:
            raise ValueError(
                f"{what}: its results differ from the model's by up to {difference:.1e} of the "
                f"largest, more than the tolerance of {tolerance:.1e}"
            )
