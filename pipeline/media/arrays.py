"""Turn a model's raw inputs into one array each, decoded in the sandbox."""

import contextlib
import itertools
import json
import threading
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from pipeline.media.decode import (
    MediaFormat,
    array_type,
    check_array,
    decode,
    decode_all,
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
    """Decode one file to an array, or to all its parts. This runs in the sandbox's child.

    Args:
        settings: `format`, from `media_to_dict`, `strict`, as for `decode`, and `in_parts`: whether
            to decode all clips of a film or contexts of a text.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._format = media_from_dict(settings["format"])
        self._strict: bool = settings["strict"]
        self._in_parts: bool = settings["in_parts"]

    def __call__(
        self, parts: dict[str, NamedBlob], values: dict[str, Any]
    ) -> Iterator[dict[str, bytes]]:
        """Yield each array's shape as JSON, and its bytes in C order.

        Raises:
            MediaError: The file cannot be used.
        """
        data, name = parts[_FIELD]
        arrays = decode_all(data, self._format, name=name, strict=self._strict)
        for array in arrays if self._in_parts else itertools.islice(arrays, 1):
            yield {_SHAPE: json.dumps(array.shape).encode(), _DATA: array.tobytes()}


class Decoder:
    """Decode the files of a model's inputs in a child process, which starts at the first file.

    Rows of tables are JSON and are read in this process. Any number of threads may call a decoder;
    they wait for each other.

    Args:
        fmt: The format of the arrays.
        seconds: The processor time allowed for one file.
        memory_bytes: The memory that the child may allocate, including its libraries.
        strict: Whether to reject files that are damaged or cut short.
        sandbox: `require` rejects all files if a protection of the sandbox is missing. `best` uses
            the protections that the machine has.
        in_parts: Whether to decode all parts of a file, with `decode_parts`, and not only the
            first one, with `decode`.
    """

    def __init__(
        self,
        fmt: MediaFormat,
        *,
        seconds: float,
        memory_bytes: int,
        strict: bool,
        sandbox: str,
        in_parts: bool = False,
    ) -> None:
        self._format = fmt
        self._lock = threading.Lock()
        settings = {"format": media_to_dict(fmt), "strict": strict, "in_parts": in_parts}
        self._sandbox = Sandbox(
            FUNCTION,
            settings,
            seconds=seconds,
            memory_bytes=memory_bytes,
            required=sandbox == "require",
        )

    def close(self) -> None:
        """End the child. The next file starts another one."""
        with self._lock:
            self._sandbox.close()

    def decode(self, data: bytes, name: str = "") -> np.ndarray:
        """Decode a file to an array that `check_array` accepts.

        Args:
            data: The bytes of the file.
            name: The name of the file. Some formats are recognised only by their extension.

        Raises:
            MediaError: The file cannot be used; the message is the reason.
            SandboxError: The child cannot start, or lacks a required protection.
        """
        if modality_of(self._format).source == "row":
            return decode(data, self._format)
        with self._lock:
            members = list(self._sandbox.run({_FIELD: (data, name)}, {}))
        return _array(members, self._format)

    def decode_parts(self, data: bytes, name: str = "") -> Iterator[np.ndarray]:
        """Yield the parts of a file, in order: all clips of a film, or all contexts of a text.

        Other threads wait until the last part. The arguments and errors are those of `decode`. If
        only a later part is damaged, the parts before it are yielded before the error.
        """
        with self._lock, contextlib.closing(self._run(data, name)) as answers:
            for answer in answers:
                yield _array([answer], self._format)

    def _run(self, data: bytes, name: str) -> Generator[dict[str, bytes]]:
        yield from self._sandbox.run({_FIELD: (data, name)}, {})


def _array(members: list[dict[str, bytes]], fmt: MediaFormat) -> np.ndarray:
    """Check and return the array in an answer. The child may be hostile: it read media."""
    try:
        (answer,) = members
        shape = tuple(map(int, json.loads(answer[_SHAPE])))
        array = np.frombuffer(answer[_DATA], array_type(fmt)[0]).reshape(shape)
        check_array(array, fmt)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MediaError("the decoder gave no such array") from error
    return array
