"""The child process of the sandbox. It runs one function on the requests that a pipe brings.

In both directions, a message is a little-endian uint32, that many bytes of JSON, and then the raw
bytes of the blobs whose sizes the JSON states. Pickle is never used, because the child has decoded
untrusted bytes. If the JSON says `shared`, the blobs are instead in memory that both processes map,
one after the other: the blobs of a request in its first half, those of the first answer in the
second half.

    parent → child   {"function", "settings", "memory_bytes", "parent", "memory"} once, then
                     {"fields", "names", "values", "sizes"} with one blob for each file of a request
    child → parent   {"kind": "ready", "layers", "missing"} once, from `lockdown.Lockdown`,
                     and for each request any number of
                     {"kind": "sample", "names", "sizes"} with one blob for each member, then one of
                     {"kind": "done"}, {"kind": "refused", "reason", "trace"}, {"kind": "memory"} or
                     {"kind": "broken", "reason", "trace"}; the child ends after the last two
"""

import importlib
import itertools
import json
import mmap
import os
import resource
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from pipeline.media.errors import MediaError, one_line, short_trace
from pipeline.media.sandbox.allocator import keep_freed_memory
from pipeline.media.sandbox.lockdown import Lockdown, die_with

HEADER_LENGTH = struct.Struct("<I")
PIPE_BYTES = 1 << 20
"""Linux's largest pipe for ordinary users. A typical message passes without a process switch."""

SHARED_BYTES = 4 << 20
"""The bytes in each half of the shared memory. Larger messages go through the pipe."""

NamedBlob = tuple[bytes, str]
"""The bytes of a file, and its name. Some formats are recognised only by their extension."""
DecodeFunction = Callable[[dict[str, NamedBlob], dict[str, Any]], Iterable]
"""Takes `(parts, values)` and yields one dictionary of shard members for each sample."""


def message(
    header: dict[str, Any], blobs: Sequence[bytes] = (), shared: memoryview | None = None
) -> list[bytes]:
    """Return the pieces of a message, to be written in order.

    Args:
        header: The JSON of the message.
        blobs: The raw bytes after the JSON.
        shared: Memory that the blobs are copied to if they fit; else they are in the message.
    """
    sizes = [len(blob) for blob in blobs]
    is_shared = shared is not None and sum(sizes) <= len(shared)
    text = json.dumps({**header, "sizes": sizes, "shared": is_shared}).encode()
    prefix = HEADER_LENGTH.pack(len(text)) + text
    if shared is None or not is_shared:
        return [prefix, *blobs]
    end = 0
    for blob in blobs:
        shared[end : end + len(blob)] = blob
        end += len(blob)
    return [prefix]


def shared_blobs(shared: memoryview, sizes: Sequence[int]) -> list[bytes]:
    """Copy the blobs from shared memory, because the other process may change it."""
    ends = list(itertools.accumulate(sizes))
    return [bytes(shared[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def halves(descriptor: int) -> tuple[memoryview, memoryview]:
    """Map the shared memory of a descriptor. Return the halves for requests and for answers."""
    memory = memoryview(mmap.mmap(descriptor, 2 * SHARED_BYTES))
    return memory[:SHARED_BYTES], memory[SHARED_BYTES:]


def main() -> None:
    """Serve requests until standard input ends."""
    requests, answers = _take_pipes()
    first = _read(requests, None)
    if first is None:
        return
    header, _ = first
    shared = halves(header["memory"])
    os.close(header["memory"])
    lockdown = Lockdown()
    lockdown.before_imports()
    die_with(header["parent"])
    try:
        function = _find(header["function"])(header["settings"])
    except Exception as error:
        _send(answers, _broken(error))
        return
    limit = header["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    keep_freed_memory()
    lockdown.after_imports()
    _send(answers, {"kind": "ready", "layers": lockdown.layers, "missing": lockdown.missing()})
    while _serve(function, requests, answers, shared):
        pass


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Move both pipes to descriptors that no library knows. 0, 1 and 2 become /dev/null."""
    requests = os.fdopen(os.dup(0), "rb", buffering=PIPE_BYTES)
    answers = os.fdopen(os.dup(1), "wb", buffering=PIPE_BYTES)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    return requests, answers


def _find(function: str) -> Callable[[dict[str, Any]], DecodeFunction]:
    module, _, name = function.partition(":")
    found: Callable[[dict[str, Any]], DecodeFunction] = getattr(
        importlib.import_module(module), name
    )
    return found


def nothing(settings: dict[str, Any]) -> DecodeFunction:
    """Return a function that yields no sample. It is used to inspect the sandbox."""
    return lambda parts, values: ()


def _serve(
    function: DecodeFunction,
    requests: IO[bytes],
    answers: IO[bytes],
    shared: tuple[memoryview, memoryview],
) -> bool:
    """Answer one request. Return False if the child must end."""
    try:
        request = _read(requests, shared[0])
        if request is None:
            return False
        header, blobs = request
        del request
        parts = {
            field: (blob, name)
            for field, blob, name in zip(header["fields"], blobs, header["names"], strict=True)
        }
        del blobs
        for number, members in enumerate(function(parts, header["values"])):
            sample = {"kind": "sample", "names": list(members)}
            _send(answers, sample, list(members.values()), None if number else shared[1])
        verdict: dict[str, Any] = {"kind": "done"}
    except ImportError as error:
        verdict = _broken(error)
    except Exception as error:  # decoders raise almost anything on malformed bytes
        verdict = {"kind": "memory"} if _lacked_memory(error) else _refused(error)
    _send(answers, verdict)
    return verdict["kind"] in ("done", "refused")


def _lacked_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refused(error: Exception) -> dict[str, Any]:
    known = isinstance(error, MediaError)
    reason = " ".join(str(error).split()) if known else one_line(error)
    return {"kind": "refused", "reason": reason, "trace": _trace(error)}


def _broken(error: Exception) -> dict[str, Any]:
    return {"kind": "broken", "reason": one_line(error), "trace": _trace(error)}


def _trace(error: BaseException) -> str:
    lines = short_trace(error).splitlines()
    return "\n".join(line for line in lines if not line.startswith("child.py:"))


def _read(
    requests: IO[bytes], shared: memoryview | None
) -> tuple[dict[str, Any], list[bytes]] | None:
    """Read a header and its blobs; None at the end of the input."""
    prefix = requests.read(HEADER_LENGTH.size)
    if len(prefix) < HEADER_LENGTH.size:
        return None
    header = json.loads(requests.read(HEADER_LENGTH.unpack(prefix)[0]))
    if shared is not None and header["shared"]:
        return header, shared_blobs(shared, header["sizes"])
    blobs = list(_exactly(requests, header["sizes"]))
    return (header, blobs) if len(blobs) == len(header["sizes"]) else None


def _exactly(requests: IO[bytes], sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        blob = requests.read(size)
        if len(blob) < size:
            return
        yield blob


def _send(
    answers: IO[bytes],
    header: dict[str, Any],
    blobs: Sequence[bytes] = (),
    shared: memoryview | None = None,
) -> None:
    for piece in message(header, blobs, shared):
        answers.write(piece)
    answers.flush()


if __name__ == "__main__":
    main()
