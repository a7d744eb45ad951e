"""A process that lacks what its arguments say, and tries all escapes from a sandbox of its own.

`python sandbox_parent.py FOLDER USER BLOCKED…`: USER is `root` or `user`; BLOCKED are layers
that its kernel is not to have: `landlock`, `seccomp`, `namespaces`. Prints JSON.
"""

import ctypes
import errno
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import sandbox_escapes

from pipeline.media import MediaError
from pipeline.media.sandbox.sandbox import Sandbox, SandboxError

_BLOCKED = {
    "landlock": [("landlock_create_ruleset", None)],
    "namespaces": [("unshare", None)],
    "seccomp": [("seccomp", None), ("prctl", 22)],
}
"""System calls, and the first argument with which they are blocked, by layer."""


class _Condition(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


def block(layers: list[str]) -> None:
    """Let the kernel answer as one without these layers does."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    allow, refuse, equal = 0x7FFF0000, 0x00050000, 4
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(allow)))
    for layer in layers:
        code = errno.EPERM if layer == "namespaces" else errno.ENOSYS
        for name, first in _BLOCKED[layer]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            number = 444 if name == "landlock_create_ruleset" else number
            conditions = () if first is None else (_Condition(0, equal, first, 0),)
            array = (_Condition * len(conditions))(*conditions)
            action = ctypes.c_uint32(refuse | code)
            if library.seccomp_rule_add_array(context, action, number, len(conditions), array):
                raise OSError(f"{name} cannot be blocked")
    if library.seccomp_load(context):
        raise OSError("the filter cannot be loaded")


def become_user() -> None:
    """No privileges, and not root's number, though the files of root are still its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "no user namespace")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("1000 0 1")
    Path("/proc/self/gid_map").write_text("1000 0 1")
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def listen(folder: Path) -> int:
    """Serve on a TCP port, a Unix and an abstract socket; returns the port."""
    servers = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    places = [("127.0.0.1", 0), str(folder / "socket"), "\0perceiver-test"]
    for server, place in zip(servers, places, strict=True):
        server.bind(place)
        server.listen()
        threading.Thread(target=accept, args=(server,), daemon=True).start()
    return servers[0].getsockname()[1]


def accept(server: socket.socket) -> None:
    while True:
        server.accept()[0].close()


def is_left(process: psutil.Process, groups: set[int | None]) -> bool:
    """Whether a process runs that belongs to one of these groups."""
    try:
        running = process.status() != psutil.STATUS_ZOMBIE
        return running and os.getpgid(process.pid) in groups
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def remaining(groups: set[int | None]) -> list[int]:
    return [process.pid for process in psutil.process_iter() if is_left(process, groups)]


def main(folder: Path, user: str, blocked: list[str]) -> None:
    if user == "user":
        become_user()
    if blocked:
        block(blocked)
    for name in ("victim", "victim2"):
        (folder / name).write_text("x")
    settings = {"port": listen(folder), "folder": str(folder)}
    outcomes: dict[str, dict[str, str]] = {}
    groups = set()
    with Sandbox("sandbox_escapes:attempt", settings) as sandbox:
        found = sandbox.protections()
        for protection, attempts in sandbox_escapes.escapes(**settings).items():
            if protection == "seccomp" and "seccomp" in blocked:
                continue
            outcomes[protection] = {}
            for escape in attempts:
                values = {"protection": protection, "escape": escape}
                groups.add(sandbox.child_pid)
                try:
                    (members,) = sandbox.run({}, values)
                    outcomes[protection][escape] = members["outcome"].decode()
                except MediaError as error:
                    outcomes[protection][escape] = str(error)
    deadline = time.monotonic() + 5
    while (left := remaining(groups)) and time.monotonic() < deadline:
        time.sleep(0.05)
    required = ""
    with Sandbox("sandbox_probes:threads", {}, required=True) as sandbox:
        try:
            list(sandbox.run({}, {}))
        except SandboxError as error:
            required = str(error)
    result = {"layers": found.layers, "missing": found.missing, "outcomes": outcomes}
    print(json.dumps({**result, "required": required, "left": left}))


if __name__ == "__main__":
    os.umask(0)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
