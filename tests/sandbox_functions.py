"""What tests run inside a sandbox: functions that behave, and functions that do not."""

import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.media import MediaError, check_array, decode_all, encode_members, media_from_dict

requests_seen = 0


def with_settings(function: Callable) -> Callable:
    """What a sandbox asks for: given the settings, the function of the files."""
    return functools.partial(functools.partial, function)


@with_settings
def echo(settings: dict[str, Any], parts: dict, values: dict[str, Any]) -> Iterator[dict]:
    """Every part comes back, with its name and what else was said, `values["copies"]` times."""
    for copy in range(values.get("copies", 1)):
        members = {field: data for field, (data, _) in parts.items()}
        names = {field: name for field, (_, name) in parts.items()}
        yield {**members, "told": repr((copy, settings, names, values)).encode()}


@with_settings
def fixed_size(settings: dict[str, Any], parts: dict, values: dict[str, Any]) -> Iterator[dict]:
    yield {"image.npy": bytes(settings["bytes"])}


@with_settings
def count(settings: dict[str, Any], parts: dict, values: dict[str, Any]) -> Iterator[dict]:
    """How many requests this process has seen, and its id."""
    global requests_seen
    requests_seen += 1
    yield {"count": str(requests_seen).encode(), "pid": str(os.getpid()).encode()}


@with_settings
def decode_media(settings: dict[str, Any], parts: dict, values: dict[str, Any]) -> Iterator[dict]:
    """Every array that the format in `settings` makes of the part, proven to be what it says."""
    fmt = media_from_dict(settings)
    (data, name) = parts["file"]
    for array in decode_all(data, fmt, name=name):
        check_array(array, fmt)
        yield encode_members(array, fmt)


@with_settings
def limits(settings: dict[str, Any], parts: dict, values: dict[str, Any]) -> Iterator[dict]:
    import resource

    yield {
        "core": str(resource.getrlimit(resource.RLIMIT_CORE)[0]).encode(),
        "session": str(os.getsid(0) == os.getpid()).encode(),
        "torch": str("torch" in sys.modules).encode(),
    }


@with_settings
def busy(settings: dict[str, Any], parts: dict, values: dict[str, Any]) -> Iterator[dict]:
    """Every sample takes `settings["seconds"]` of the processor."""
    for _ in range(values["samples"]):
        until = time.process_time() + settings["seconds"]
        while time.process_time() < until:
            pass
        yield {}


@with_settings
def misbehave(settings: dict[str, Any], parts: dict, values: dict[str, Any]) -> Iterator[dict]:
    """`values["samples"]` good samples, then what `values["how"]` says."""
    for number in range(values.get("samples", 0)):
        yield {"number": str(number).encode()}
    _FAULTS[values["how"]](**values.get("arguments", {}))


def _refuse() -> None:
    raise MediaError("too blurred\nfor anyone")


def _index_error() -> None:
    [][7]


def _address() -> None:
    raise OSError(f"Error opening {object()!r}: no")


def _segfault() -> None:
    ctypes.string_at(0)


def _signal(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(60)


def _leave() -> None:
    os._exit(3)


def _spin() -> None:
    while True:
        pass


def _allocate(mebibytes: int) -> None:
    np.ones(mebibytes << 20, np.uint8)


def _allocate_and_wrap(mebibytes: int) -> None:
    try:
        _allocate(mebibytes)
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error


def _import_nothing() -> None:
    __import__("no_such_package")


def _print() -> None:
    print("a library says hello", flush=True)
    os.write(1, b"\0\0\0\0")
    os.write(2, b"a C library complains\n")


def _read_standard_input() -> None:
    if sys.stdin.read() or os.read(0, 100):
        raise AssertionError("the next request lies on descriptor 0")


def _nothing() -> None:
    pass


_FAULTS = {
    "nothing": _nothing,
    "refuse": _refuse,
    "index error": _index_error,
    "address": _address,
    "segfault": _segfault,
    "signal": _signal,
    "leave": _leave,
    "spin": _spin,
    "sleep": lambda: time.sleep(600),
    "allocate": _allocate,
    "allocate and wrap": _allocate_and_wrap,
    "import nothing": _import_nothing,
    "print": _print,
    "read standard input": _read_standard_input,
}
