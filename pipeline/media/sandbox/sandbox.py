"""Decode untrusted media in a child process with limits on memory, time and access.

If a decoder crashes, hangs or uses too much memory, only a child is lost, and the file gets the
same reason on every machine. A hijacked decoder has no network, no other process, no secret, and no
files but Python's packages. `Protections` says which of these hold on a machine.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pipeline.media.errors import MediaError
from pipeline.media.sandbox.child import NamedBlob
from pipeline.media.sandbox.process import Child, ChildDiedError, SandboxError, broken

__all__ = ["Protections", "Sandbox", "SandboxError", "protections"]


@dataclass(frozen=True)
class Protections:
    """What restrains a hijacked decoder. The names are those of `lockdown.PROTECTIONS`.

    Attributes:
        layers: For each protection, the layers that enforce it.
        missing: The protections that nothing enforces on this machine, and the reasons.
    """

    layers: dict[str, list[str]]
    missing: dict[str, str]

    def lacking(self) -> str | None:
        """Return the missing protections and the reasons in one line, or None."""
        if not self.missing:
            return None
        return ", ".join(f"{name} ({why})" for name, why in self.missing.items())


class Sandbox:
    """Run a function in a long-lived child process and stream what it yields.

    The child calls `function(settings)` once. For every file, it calls the returned function with
    `(parts, values)`, which yields a dictionary of shard members, name to bytes, for each sample.
    A child that died is replaced before the next file. A file is blamed only if it also kills a
    child that has read no other file. One file at a time, from one thread at a time.

    Args:
        function: `module:name`, imported in the child.
        settings: JSON, the same for every file.
        seconds: The processor time allowed for one result.
        memory_bytes: The memory that the child may allocate, including its libraries.
        max_requests: The number of files after which the child is replaced, against slow leaks.
        required: Whether to raise an error if a protection is missing.
    """

    def __init__(
        self,
        function: str,
        settings: dict[str, Any],
        *,
        seconds: float = 60,
        memory_bytes: int = 2 * 1024**3,
        max_requests: int = 5000,
        required: bool = False,
    ) -> None:
        self._function = function
        self._settings = settings
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._max_requests = max_requests
        self._required = required
        self._child: Child | None = None
        self._protections: Protections | None = None
        self._served = 0
        self._busy = False

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child. The next `run` starts another one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    @property
    def child_pid(self) -> int | None:
        """The process id of the child, or None before the first file."""
        return None if self._child is None else self._child.pid

    @property
    def known_protections(self) -> Protections | None:
        """The protections of the children, or None before the first child."""
        return self._protections

    def protections(self) -> Protections:
        """Return the protections of the children. Starts a child if there was none.

        Raises:
            SandboxError: The child cannot start.
        """
        if self._protections is None:
            self._ready_child()
        assert self._protections is not None
        return self._protections

    def run(
        self, parts: dict[str, NamedBlob], values: dict[str, Any]
    ) -> Iterator[dict[str, bytes]]:
        """Decode one sample's files.

        Args:
            parts: For each field, the bytes of the file and its name.
            values: JSON that belongs to the files.

        Yields:
            One dictionary of shard members for each sample made of the files.

        Raises:
            MediaError: The function raised an error (with its `trace`), or the child crashed, took
                more than `seconds` for one result, or used more than `memory_bytes`.
            SandboxError: The child cannot start or lacks a package, or a required protection is
                missing.
        """
        if self._busy:
            raise RuntimeError("the sandbox is still at another file; finish or close that first")
        self._busy = True
        delivered = 0
        try:
            while True:
                child, is_new = self._ready_child()
                try:
                    for number, members in enumerate(self._results(child, parts, values)):
                        if number == delivered:
                            delivered += 1
                            yield members
                    return
                except ChildDiedError as error:
                    if is_new:
                        raise MediaError(str(error)) from None
        finally:
            self._busy = False

    def _ready_child(self) -> tuple[Child, bool]:
        """Return the child, and whether it is new."""
        if self._served >= self._max_requests:
            self.close()
        if self._child is not None:
            self._served += 1
            return self._child, False
        self._child = Child(
            {
                "function": self._function,
                "settings": self._settings,
                "memory_bytes": self._memory_bytes,
                "parent": os.getpid(),
            }
        )
        self._served = 1
        self._protections = Protections(self._child.layers, self._child.missing)
        if self._required and (lacking := self._protections.lacking()):
            self.close()
            raise SandboxError(
                f"the sandbox of decoders is required, but on {socket.gethostname()} it lacks "
                f"{lacking}; mend that, use another machine, or do without (data.sandbox=best)"
            )
        return self._child, True

    def _results(
        self, child: Child, parts: dict[str, NamedBlob], values: dict[str, Any]
    ) -> Iterator[dict[str, bytes]]:
        in_step = False
        try:
            names = [name for _, name in parts.values()]
            request = {"fields": list(parts), "names": names, "values": values}
            child.send(request, [data for data, _ in parts.values()], self._seconds)
            while True:
                header, blobs = child.receive(self._seconds)
                kind = header["kind"]
                if kind == "sample":
                    yield dict(zip(header["names"], blobs, strict=True))
                    continue
                in_step = kind in ("done", "refused")
                if kind == "refused":
                    raise MediaError(header["reason"], trace=header["trace"])
                if kind == "memory":
                    mebibytes = self._memory_bytes // 1024**2
                    raise ChildDiedError(f"decoding took more than {mebibytes} MiB")
                if kind == "broken":
                    raise broken(self._function, header)
                return
        except TimeoutError:
            raise MediaError(f"decoding took more than {self._seconds:g} s") from None
        finally:
            if not in_step:  # the child crashed or gave up, or the caller stopped early
                self.close()


def protections() -> Protections:
    """Return the protections of the sandbox on this machine.

    Raises:
        SandboxError: No child can be started.
    """
    with Sandbox("pipeline.media.sandbox.child:nothing", {}) as sandbox:
        return sandbox.protections()
