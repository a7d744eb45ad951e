"""The values of DeepSpeed's configuration: given keys put in, and read back from an engine."""

from collections.abc import Iterator, Mapping
from typing import Any


def merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping with the values of another one in their places."""
    result = dict(own)
    for key, value in given.items():
        inner = result.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            result[key] = merged(inner, value)
        else:
            result[key] = value
    return result


def read_back(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same keys with the values that an engine follows.

    Args:
        config: The engine's parsed configuration, DeepSpeed's `DeepSpeedConfig`.
        given: The keys that were passed on.
    """
    found: dict[str, Any] = {}
    for path, value in _leaves(given):
        place = found
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = _value(config, path, value)
    return found


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _value(config: Any, path: tuple[str, ...], given: Any) -> Any:
    """Return the value of one key in the engine's configuration, in the type that was given."""
    import torch

    places = {
        "zero_optimization": lambda: config.zero_config,
        "aio": lambda: config.aio_config,
        "flops_profiler": lambda: config.flops_profiler_config,
        "comms_logger": lambda: config.comms_config.comms_logger,
        "timers": lambda: {"throughput": config.timers_config},
    }
    top, *inner = path
    if top in places:
        value = places[top]()
    else:
        monitor = hasattr(config.monitor_config, top)
        value = getattr(config.monitor_config if monitor else config, top)
    for key in inner:
        value = value[key] if isinstance(value, Mapping) else _attribute(value, key)
    dtypes = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    value = dtypes[value] if isinstance(value, torch.dtype) else value
    return given if _plain(value) == given else _plain(value)


def _attribute(section: Any, key: str) -> Any:
    """Return a field of one of DeepSpeed's models by its name or its alias."""
    names = {each.alias: name for name, each in type(section).model_fields.items()} if hasattr(
        type(section), "model_fields") else {}  # fmt: skip
    return getattr(section, names.get(key, key))


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value
