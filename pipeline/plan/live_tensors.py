"""The bytes of all tensors that are alive while code runs, and the arithmetic that it does.

It works on real tensors and on torch's fake ones, which have a shape and no data. So the same code
measures a step that runs and predicts one that does not.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ALIGNMENT = 512
"""The CUDA allocator gives every tensor a multiple of this number of bytes."""
_MATRIX_OPS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"})
_ALL = (torch.ops.aten.all.default, torch.ops.aten.all.dim)
_ATTENTION = "scaled_dot_product"
_SEPARABLE = "perceiver::separable_attention"
_SEPARABLE_PASSES = {False: 2, True: 5}
"""The products of a query and a token that the separable operator takes, and its backward."""


@dataclass(frozen=True)
class Operation:
    """One operation on tensors.

    Attributes:
        kind: `product`, `attention`, `separable`, or `memory` for all others.
        flops: Its FLOPs; 0 for `memory`.
        moved: The bytes that it reads and writes.
        backward: Whether it belongs to the backward pass.
        again: Whether it computes something of the forward pass again.
    """

    kind: str
    flops: int
    moved: int
    backward: bool
    again: bool


@dataclass
class LiveTensors(TorchDispatchMode):
    """Count the bytes of the tensors that operations make in the body, until they are freed.

    Gradients of parameters are counted apart, once `take_gradient` was given them.

    Args:
        truth: What a fake tensor says when code asks whether all its values are true. It says no
            when code asks anything else, and 0 to what a number is. None for real tensors.
        note: A function that takes every operation that computes something, or None.
        alignment: Every tensor takes a multiple of this number of bytes.

    Attributes:
        live: The bytes of all tensors but gradients.
        gradients: The bytes of the gradients.
        peak: The most that `live` was.
        peak_with_gradients: The most that `live` and `gradients` were together.
        backward: Whether the backward pass runs.
    """

    truth: bool | None = None
    note: Callable[[Operation], None] | None = None
    alignment: int = 1
    live: int = 0
    gradients: int = 0
    peak: int = 0
    peak_with_gradients: int = 0
    backward: bool = False
    _sizes: dict[int, tuple[int, bool]] = field(default_factory=dict)
    _all: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor, unless its storage is counted already or it is on the meta device."""
        if tensor.device.type == "meta":  # DeepSpeed keeps the shapes of weights so
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = -(-storage.nbytes() // self.alignment) * self.alignment
        self._sizes[key] = (size, False)
        self.live += size
        self._see()
        weakref.finalize(storage, self._remove, key)

    def take_gradient(self, parameter: torch.Tensor) -> None:
        """Count a parameter's gradient apart."""
        if parameter.grad is None:
            return
        self.add(parameter.grad)
        key = parameter.grad.untyped_storage()._cdata
        size, apart = self._sizes[key]
        if not apart:
            self._sizes[key] = (size, True)
            self.live -= size
            self.gradients += size

    def restart(self) -> None:
        """Forget the peaks before now."""
        self.peak, self.peak_with_gradients = self.live, self.live + self.gradients

    def _see(self) -> None:
        self.peak = max(self.peak, self.live)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + self.gradients)

    def _remove(self, key: int) -> None:
        self._all.discard(key)
        size, apart = self._sizes.pop(key, (0, False))
        if apart:
            self.gradients -= size
        else:
            self.live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it makes."""
        if self.truth is not None and func is torch.ops.aten._local_scalar_dense.default:
            all_of = args[0].untyped_storage()._cdata in self._all
            return self.truth and all_of if args[0].dtype == torch.bool else 0
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        before = len(self._sizes)
        for tensor in made:
            self.add(tensor)
        if self.truth is not None and func in _ALL:
            self._all.add(out.untyped_storage()._cdata)
        if self.note is not None and (len(self._sizes) > before or _writes(func)):
            self.note(self._operation(func, args, kwargs or {}, out, made))
        return out

    def _operation(
        self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, made: list[torch.Tensor]
    ) -> Operation:
        read = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in read + made)
        again = self.backward and torch.is_grad_enabled()
        kind, flops = _flops(func, args, kwargs, out)
        return Operation(kind, flops, moved, self.backward, again)


def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _flops(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> tuple[str, int]:
    """Return the kind of an operation, and its FLOPs."""
    name = func._schema.name
    short = name.rpartition("::")[2]
    if name.startswith(_SEPARABLE):
        backward = name.endswith("_backward")
        queries, content = args[3 * backward], args[3 + 3 * backward]
        pairs = queries.shape[:-1].numel() * content.shape[1]
        return "separable", _SEPARABLE_PASSES[backward] * pairs * 2 * (content.shape[-1] + 2)
    if _ATTENTION in short:
        backward = "backward" in short
        query, key, value = args[backward : backward + 3]
        pairs = query.shape[:-1].numel() * key.shape[-2]
        forward = 2 * pairs * (query.shape[-1] + value.shape[-1])
        # The backward pass takes five products where the forward pass takes two.
        return "attention", forward * 5 // 2 if backward else forward
    if short in _MATRIX_OPS:
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            return "product", int(formula(*args, **kwargs, out_val=out))
    return "memory", 0
