"""Raw media to one array each, decoded in the sandbox: what a model is asked about."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.media.decode import (
    MediaFormat,
    array_type,
    check_array,
    decode,
    media_from_dict,
    media_to_dict,
)
from pipeline.media.errors import MediaError
from pipeline.media.registered import modality_of
from pipeline.media.sandbox.child import NamedBlob
from pipeline.media.sandbox.sandbox import Sandbox

FUNCTION = f"{__name__}:ArrayMaker"
_FIELD, _SHAPE, _DATA = "media", "shape", "data"


class ArrayMaker:
    """Decodes one file to an array; runs in the sandbox's child.

    Args:
        settings: `format`, from `media_to_dict`, and `strict`, as of `decode`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._format = media_from_dict(settings["format"])
        self._strict: bool = settings["strict"]

    def __call__(
        self, parts: dict[str, NamedBlob], values: dict[str, Any]
    ) -> Iterator[dict[str, bytes]]:
        """The array's shape, in JSON, and its bytes in C order.

        Raises:
            MediaError: the file cannot be used.
        """
        data, name = parts[_FIELD]
        array = decode(data, self._format, name=name, strict=self._strict)
        yield {_SHAPE: json.dumps(array.shape).encode(), _DATA: array.tobytes()}


class Decoder:
    """Decodes the files of a model's inputs in a child process, which it starts when first needed.

    Rows of tables are JSON, and are read in this process. Any number of threads may call it; they
    wait for each other.

    Args:
        fmt: what to make of the files.
        seconds: processor time allowed for one file.
        memory_bytes: what the child may allocate, its libraries included.
        strict: whether files are refused that are damaged or cut short.
        sandbox: `require` refuses to decode where a protection of the sandbox is missing;
            `best` makes do with those that the machine has.
    """

    def __init__(
        self, fmt: MediaFormat, *, seconds: float, memory_bytes: int, strict: bool, sandbox: str
    ) -> None:
        self._format = fmt
        self._lock = threading.Lock()
        settings = {"format": media_to_dict(fmt), "strict": strict}
        self._sandbox = Sandbox(
            FUNCTION,
            settings,
            seconds=seconds,
            memory_bytes=memory_bytes,
            required=sandbox == "require",
        )

    def close(self) -> None:
        """End the child; the next file starts another."""
        with self._lock:
            self._sandbox.close()

    def decode(self, data: bytes, name: str = "") -> np.ndarray:
        """An array as `check_array` says.

        Args:
            data: the file's bytes.
            name: the file's name, for formats that only their extension tells.

        Raises:
            MediaError: the file cannot be used; the text is the reason.
            SandboxError: the child cannot start, or lacks a protection that is required.
        """
        if modality_of(self._format).source == "row":
            return decode(data, self._format)
        with self._lock:
            members = list(self._sandbox.run({_FIELD: (data, name)}, {}))
        return _array(members, self._format)


def _array(members: list[dict[str, bytes]], fmt: MediaFormat) -> np.ndarray:
    """The array in a child's answer, which need not be true: the child has read untrusted bytes."""
    try:
        (answer,) = members
        shape = tuple(map(int, json.loads(answer[_SHAPE])))
        array = np.frombuffer(answer[_DATA], array_type(fmt)[0]).reshape(shape)
        check_array(array, fmt)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MediaError("the decoder gave no such array") from error
    return array
