"""What a decoder that is taken over would try, by the protection that it is up against.

Each function raises OSError where it is held back, and returns where it gets through.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import resource
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PTRACE_SEIZE = 0x4206
_GET_DUMPABLE, _GET_NO_NEW_PRIVILEGES = 3, 39
_FIONREAD = 0x541B
_NUMBERS = {"pidfd_open": 434, "io_uring_setup": 425, "clone3": 435}
"""Of system calls that C libraries have no function for; since 5.1 equal on all architectures."""


def _parent() -> int:
    return os.getppid()


def _libc(name: str, *arguments: Any) -> int:
    result: int = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _syscall(name: str, *arguments: Any) -> int:
    return _libc("syscall", ctypes.c_long(_NUMBERS[name]), *arguments)


def pipe_to_parent() -> int:
    """The descriptor that answers go to."""
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
            if is_pipe and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                return number
    raise AssertionError("no pipe")


def read_byte(path: str) -> None:
    with Path(path).open("rb") as file:
        file.read(1)


def _peek() -> None:
    """Read the first bytes of this program in the parent: both run the same interpreter."""
    with Path(f"/proc/{_parent()}/mem").open("rb", buffering=0) as file:
        file.seek(_address())
        file.read(1)


def _address() -> int:
    """Of something; where the parent has nothing there, EIO and not EACCES is the answer."""
    return 1 << 20


def _vm_read() -> None:
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(8)
    mine, others = Span(ctypes.addressof(buffer), 8), Span(_address(), 8)
    _libc("process_vm_readv", _parent(), ctypes.byref(mine), 1, ctypes.byref(others), 1, 0)


def _reaches_memory(function: Callable[[], None]) -> None:
    """An address where there is nothing, or not all of it, is not a refusal."""
    try:
        function()
    except OSError as error:
        if error.errno not in (errno.EFAULT, errno.EIO):
            raise


def _tcp(port: int) -> None:
    with socket.socket() as client:
        client.connect(("127.0.0.1", port))


def _unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def _udp(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.send(b"secret")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _daemon() -> None:
    """A process that leaves its session and goes on, for some seconds, after its parent's end."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(3)
    os._exit(0)


def _sleeper() -> None:
    """A process that stays in its parent's group, and would go on for long."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)


def _clone3() -> None:
    arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, signal.SIGCHLD)
    if _syscall("clone3", ctypes.byref(arguments), ctypes.sizeof(arguments)) == 0:
        os._exit(0)


def _spawn() -> None:
    subprocess.run(["/bin/true"], check=True)


def _own_signals(target: int) -> None:
    """Signals of a descriptor's to another process."""
    fcntl.fcntl(pipe_to_parent(), fcntl.F_SETOWN, target)


def _memory_without_limit() -> None:
    mmap.mmap(-1, 1 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS).close()


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


def _is_off(what: int) -> None:
    """Whether a protection of prctl(2) is off: returns only then."""
    found = _libc("prctl", what, 0, 0, 0, 0)
    if (what, found) in ((_GET_NO_NEW_PRIVILEGES, 1), (_GET_DUMPABLE, 0)):
        raise PermissionError(errno.EPERM, "it is on")


def _waiting_bytes() -> None:
    """A request to a device's driver, here a pipe's."""
    fcntl.ioctl(pipe_to_parent(), _FIONREAD, bytes(4))


def _remove(path: str) -> None:
    Path(path).unlink()


def _resize_shared_memory(size: int) -> None:
    """A page that the parent maps and that is gone would kill it."""
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.fstat(number).st_mode):
                break
    os.ftruncate(number, size)


def escapes(port: int, folder: str) -> dict[str, dict[str, Callable[[], object]]]:
    """Attempts by what should hold them back.

    Args:
        port: of this machine, where a TCP server listens.
        folder: that everyone may write to; it has `victim`, a file, and `socket`, where a
            server listens.
    """
    parent = _parent()
    return {
        "reading": {
            "passwd": lambda: read_byte("/etc/passwd"),
            "hosts": lambda: read_byte("/etc/hosts"),
            "victim": lambda: read_byte(f"{folder}/victim"),
            "cmdline": lambda: read_byte("/proc/self/cmdline"),
            "own environment": lambda: read_byte("/proc/self/environ"),
            "temporary files": lambda: [*Path(folder).iterdir()],
            "project": lambda: read_byte(f"{Path(__file__).parents[1]}/pyproject.toml"),
        },
        "writing": {
            "create": lambda: Path(f"{folder}/new").write_bytes(b""),
            "append": lambda: os.close(os.open(f"{folder}/victim", os.O_WRONLY | os.O_APPEND)),
            "truncate": lambda: os.truncate(f"{folder}/victim", 0),
            "remove": lambda: _remove(f"{folder}/victim2"),
            "mkdir": lambda: Path(f"{folder}/made").mkdir(),
            "link": lambda: os.link(f"{folder}/victim", f"{folder}/linked"),
            "symlink": lambda: Path(f"{folder}/pointer").symlink_to("/etc"),
            "fifo": lambda: os.mkfifo(f"{folder}/fifo"),
            "create while reading": lambda: _open(f"{folder}/new2", os.O_RDONLY | os.O_CREAT),
            "cut while reading": lambda: _open(f"{folder}/victim", os.O_RDONLY | os.O_TRUNC),
            "shared memory": lambda: _resize_shared_memory(0),
            "larger shared memory": lambda: _resize_shared_memory(1 << 30),
            "installed code": lambda: Path(os.__file__).open("ab").close(),
            "own code": lambda: Path(__file__).open("ab").close(),
        },
        "network": {
            "tcp": lambda: _tcp(port),
            "udp": lambda: _udp(port),
        },
        "processes": {
            "fork": _fork,
            "daemon": _daemon,
            "sleeper": _sleeper,
            "clone3": _clone3,
        },
        "signals": {
            "parent": lambda: os.kill(parent, signal.SIGCONT),
            "thread of the parent": lambda: _libc("tgkill", parent, parent, signal.SIGCONT),
            "abstract socket": lambda: _unix("\0perceiver-test"),
            "group of the parent": lambda: os.killpg(os.getpgid(parent), signal.SIGCONT),
        },
        "memory": {
            "environment of the parent": lambda: read_byte(f"/proc/{parent}/environ"),
            "memory of the parent": lambda: _reaches_memory(_peek),
            "process_vm_readv": lambda: _reaches_memory(_vm_read),
            "ptrace": lambda: _libc("ptrace", _PTRACE_SEIZE, parent, None, None),
            "files of the parent": lambda: Path(f"/proc/{parent}/fd/0").readlink(),
            "folder of the parent": lambda: [*Path(f"/proc/{parent}/cwd/").iterdir()],
        },
        "seccomp": {
            "exec": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 0"]),
            "spawn": _spawn,
            "unix socket": lambda: _unix(f"{folder}/socket"),
            "any socket": lambda: socket.socketpair(),
            "user namespace": lambda: _libc("unshare", 0x10000000),
            "life after the parent": lambda: _libc("prctl", 1, 0, 0, 0, 0),
            "debuggers": lambda: _libc("prctl", 4, 1, 0, 0, 0),
            "io_uring": lambda: _syscall("io_uring_setup", 1, ctypes.create_string_buffer(120)),
            "pidfd": lambda: _syscall("pidfd_open", parent, 0),
            "memory file": lambda: os.memfd_create("x"),
            "shared memory": _memory_without_limit,
            "System V memory": lambda: _libc("shmget", 0, 4096, 0o1600),
            "session": os.setsid,
            "owner of a descriptor": lambda: _own_signals(parent),
            "limits of the parent": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
            "terminal": lambda: os.openpty(),
            "other ioctl": _waiting_bytes,
        },
        "privileges": {
            "more files": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)),
            "many files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000)),
            "root's group": lambda: os.setgroups([0]),
            "another root": lambda: os.chroot("/"),
            "programs that give some": lambda: _is_off(_GET_NO_NEW_PRIVILEGES),
            "debuggers": lambda: _is_off(_GET_DUMPABLE),
        },
    }


def attempt(settings: dict[str, Any]) -> Callable:
    """For the sandbox: tries what `values` asks for, and gives the outcome.

    `escaped`, or the name of the error.
    """
    return functools.partial(_attempt, settings)


def _attempt(
    settings: dict[str, Any], parts: dict, values: dict[str, Any]
) -> Iterator[dict[str, bytes]]:
    function = escapes(**settings)[values["protection"]][values["escape"]]
    try:
        function()
    except OSError as error:
        yield {"outcome": errno.errorcode[error.errno or 0].encode()}
    except ValueError as error:  # of setrlimit
        yield {"outcome": str(error).encode()}
    else:
        yield {"outcome": b"escaped"}
