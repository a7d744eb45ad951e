"""A user's torch module as a backbone: it is imported, built, and run for its feature maps."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

OUTPUT = "output"
"""The name of the only output of a module that returns one tensor."""

_DTYPES = (torch.float32, torch.int64, torch.bool)
_FILE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Geometry(NamedTuple):
    """What a backbone makes of one image.

    Attributes:
        shapes: The channels, rows and columns of each feature map.
        flops: The FLOPs of the matrix products and convolutions of the module.
    """

    shapes: tuple[tuple[int, int, int], ...]
    flops: int


def build_module(target: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import a callable and build a module with it on the CPU.

    Args:
        target: `package.module:callable`. Only trusted text may come here, because its code runs.
        arguments: The keyword arguments.

    Raises:
        ValueError: There is no such callable, it fails, or its module cannot be a backbone.
    """
    name, _, attribute = target.partition(":")
    try:
        build = attrgetter(attribute)(import_module(name))
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        mend = "install it, or put the folder that holds it on PYTHONPATH" if own else "install it"
        raise ValueError(f"backbone {target}: there is no module {error.name!r}; {mend}") from None
    except AttributeError:
        raise ValueError(f"backbone {target}: {name} has no {attribute!r}") from None
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"backbone {target}: cannot be imported: {_line(error)}") from error
    try:
        with torch.device("cpu"):
            module = build(**arguments)
    except Exception as error:  # as above
        raise ValueError(f"backbone {target}: cannot be built: {_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"backbone {target}: gives a {type(module).__name__}, not a torch module")
    _check_tensors(module, target)
    return module


def load_weights_file(module: nn.Module, path: str | Path) -> None:
    """Load all tensors of a module's state dict from a safetensors file.

    Floating-point numbers in 16 bits become float32.

    Raises:
        ValueError: The file cannot be read, or has other tensors than the module.
    """
    try:
        if not Path(path).is_file():
            raise ValueError("there is no such file")
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no readable safetensors file ({_line(error)})") from None
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        says = [f"lacks {_some(missing)}"] if missing else []
        says += [f"has {_some(unknown)}, which the backbone does not have"] if unknown else []
        raise ValueError(f"{path}: {'; it '.join(says)}")
    for name, tensor in own.items():
        found = tensors[name]
        if found.shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} has the shape {list(found.shape)}, in the backbone "
                f"{list(tensor.shape)}"
            )
        allowed = _FILE_DTYPES if tensor.is_floating_point() else (tensor.dtype,)
        if found.dtype not in allowed:
            raise ValueError(f"{path}: {name} is {found.dtype}; must be {allowed[0]}")
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise ValueError(f"{path}: {name} has numbers that are not finite")
    module.load_state_dict(tensors)


class FeatureMaps:
    """Reads chosen feature maps of a module when it runs.

    A name is a key or a number in what the module returns, or `OUTPUT`, or else a submodule.

    Args:
        module: The module.
        names: The names of the maps.
        images: Images on which the module is run now, to see what it returns: float32 `[batch,
            channels, height, width]`.

    Raises:
        ValueError: The module cannot read the images, or there is no such map.

    Attributes:
        first: The maps of these images.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], images: torch.Tensor) -> None:
        self._names = tuple(names)
        submodules = dict(module.named_modules())
        self._taps = {name: _Tap(submodules[name]) for name in names if name in submodules}
        for tap in self._taps.values():
            tap.notes_version = True
        try:
            returned = module(images)
        except Exception as error:  # the user's code may raise anything
            shape = list(images.shape)
            raise ValueError(f"cannot read images {shape}: {_line(error)}") from error
        returned = _by_name(returned)
        for name in returned.keys() & self._taps.keys():
            self._taps.pop(name).remove()
        for name in names:
            if name not in returned and name not in self._taps:
                known = _some([*returned, *filter(None, submodules)], 12)
                raise ValueError(f"has no output and no submodule {name!r}; it has {known}")
        for name, tap in self._taps.items():
            tap.check(name)
        self.first = self.read(returned)
        for name, found in zip(names, self.first, strict=True):
            if not isinstance(found, torch.Tensor) or found.ndim != 4:
                is_tensor = isinstance(found, torch.Tensor)
                kind = list(found.shape) if is_tensor else f"a {type(found).__name__}"
                raise ValueError(
                    f"gives {kind} as {name!r}; a feature map is [batch, channels, rows, columns]"
                )

    def read(self, returned: Any) -> list[torch.Tensor]:
        """Return the maps `[batch, channels, rows, columns]`, in the order of the names.

        Args:
            returned: What the module has just returned.
        """
        if not self._taps.keys() >= set(self._names):
            returned = _by_name(returned)
        kept = {name: tap.take() for name, tap in self._taps.items()}
        return [kept[name] if name in kept else returned[name] for name in self._names]

    def come_last(self) -> None:
        """Read submodules after all hooks that were registered since, such as DeepSpeed's."""
        for tap in self._taps.values():
            tap.come_last()


class _Tap:
    """A forward hook that keeps the output of a submodule. It can be copied with its module."""

    def __init__(self, submodule: nn.Module) -> None:
        self._submodule = submodule
        self._handle = submodule.register_forward_hook(self)
        self._output: Any = None
        self._version = 0
        self.notes_version = False

    def __call__(self, submodule: nn.Module, arguments: Any, output: Any) -> None:
        self._output = output
        if self.notes_version and isinstance(output, torch.Tensor):
            self._version = output._version

    def check(self, name: str) -> None:
        """Refuse an output that the rest of the module has changed in place, or has not made."""
        self.notes_version = False
        if self._output is None:
            raise ValueError(f"does not run its submodule {name!r}")
        if isinstance(self._output, torch.Tensor) and self._output._version != self._version:
            raise ValueError(
                f"changes the output of {name!r} in place afterwards; name the submodule that "
                "changes it"
            )

    def take(self) -> Any:
        """Return the output, and keep it no longer."""
        output, self._output = self._output, None
        return output

    def remove(self) -> None:
        """Stop keeping outputs."""
        self._handle.remove()

    def come_last(self) -> None:
        """Be called after the submodule's other hooks."""
        if next(reversed(self._submodule._forward_hooks)) != self._handle.id:
            self._handle.remove()
            self._handle = self._submodule.register_forward_hook(self)


@lru_cache
def geometry(
    target: str, arguments: str, outputs: tuple[str, ...], shape: tuple[int, int, int]
) -> Geometry:
    """Build a backbone, and return what it makes of one image.

    Args:
        target: As for `build_module`.
        arguments: The keyword arguments of the callable, as JSON.
        outputs: The names of the feature maps.
        shape: The channels, rows and columns of an image.

    Raises:
        ValueError: The module cannot be built, or gives no such maps.
    """
    module = build_module(target, json.loads(arguments)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = maps_of(module, target, outputs, shape)
    shapes = tuple((found.shape[1], found.shape[2], found.shape[3]) for found in maps.first)
    return Geometry(shapes, counter.get_total_flops())


def maps_of(
    module: nn.Module, target: str, outputs: tuple[str, ...], shape: tuple[int, int, int]
) -> FeatureMaps:
    """Return the feature maps of a backbone, after running it on an image of zeros.

    Args:
        module: The module, on the CPU.
        target: Where it comes from, for errors.
        outputs: The names of the feature maps.
        shape: The channels, rows and columns of an image.

    Raises:
        ValueError: The module gives no such maps.
    """
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            return FeatureMaps(module, outputs, torch.zeros(1, *shape))
    except ValueError as error:
        raise ValueError(f"backbone {target}: {error}") from error.__cause__


def _check_tensors(module: nn.Module, target: str) -> None:
    """Refuse tensors that checkpoints do not hold."""
    seen: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"backbone {target}: {name} is {tensor.dtype}; must be torch.float32")
        if id(tensor) in seen:
            raise ValueError(
                f"backbone {target}: {seen[id(tensor)]} and {name} are one tensor; a backbone's "
                "submodules must not share tensors"
            )
        seen[id(tensor)] = name


def _by_name(returned: Any) -> dict[str, Any]:
    """Return what a module has returned, by name; nothing if it is none of these."""
    if isinstance(returned, torch.Tensor):
        return {OUTPUT: returned}
    if isinstance(returned, Mapping):
        return {str(key): value for key, value in returned.items()}
    if isinstance(returned, list | tuple):
        return {str(number): value for number, value in enumerate(returned)}
    return {}


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
