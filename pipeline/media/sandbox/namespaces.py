"""Namespaces and privileges: what a process leaves by system calls that Linux has long had."""

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x40000000

_SET_DUMPABLE, _SET_NO_NEW_PRIVILEGES = 4, 38
_CAPABILITIES_VERSION = 0x20080522
_READ_ANY_FILE = 1 << 2
"""CAP_DAC_READ_SEARCH: root's packages may lie in another user's folder."""

_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = {os.ST_NOSUID: 2, os.ST_NODEV: 4, os.ST_NOEXEC: 8, os.ST_NOATIME: 1024,
               os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}  # fmt: skip
"""A mount's flags, from statvfs(3) to mount(2): a namespace may not take them off."""

_EMPTY = "/tmp"
"""A folder that is there everywhere: the new root lies on it, for this process alone."""


def leave_network(*, with_mounts: bool) -> bool:
    """Move this process, which has one thread, into a network of its own, without interfaces.

    System V's shared memory and queues are its own, too. A user who may not do that gets a user
    namespace first: from there no other process's memory can be reached.

    Args:
        with_mounts: a table of mounts of its own, for `leave_files`.

    Returns:
        Whether there is a new user namespace.

    Raises:
        OSError: it is not allowed.
    """
    flags = _NEW_NETWORK | _NEW_IPC | (_NEW_MOUNTS if with_mounts else 0)
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", flags)
    except PermissionError:
        _call("unshare", flags | _NEW_USER)
    else:
        return False
    # Without numbers of its own it could mount nothing.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def leave_files(readable: Iterable[str]) -> None:
    """Give this process a root that holds these files and folders, read-only, and nothing else.

    It needs the mounts of `leave_network`, and holds once the privileges are dropped.

    Raises:
        OSError: it is not allowed.
    """
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    # Opened first: what is mounted on _EMPTY hides those that lie below it.
    opened = [(path, os.open(path, os.O_PATH)) for path in _outermost(readable)]
    _mount("none", _EMPTY, "tmpfs", options="size=1m,mode=755")
    for path, descriptor in opened:
        _bind(descriptor, Path(f"{_EMPTY}{path}"))
        os.close(descriptor)
    _mount("none", _EMPTY, flags=_REMOUNT | _READ_ONLY)
    os.chdir(_EMPTY)
    os.chroot(".")


def _outermost(paths: Iterable[str]) -> list[str]:
    """The paths that exist, without those below another one."""
    found: list[str] = []
    for path in sorted(path for path in paths if Path(path).exists()):
        if not found or not Path(path).is_relative_to(found[-1]):
            found.append(path)
    return found


def _bind(descriptor: int, place: Path) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        place.mkdir(parents=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    _mount(f"/proc/self/fd/{descriptor}", str(place), flags=_BIND | _RECURSIVE)
    has = os.statvfs(place).f_flag
    kept = sum(flag for told, flag in _KEPT_FLAGS.items() if has & told)
    _mount("none", str(place), flags=_BIND | _REMOUNT | _READ_ONLY | kept)


def drop_privileges() -> bool:
    """Give up all capabilities, and ever gaining any; other processes cannot look into this one.

    As root it keeps reading what root may read.

    Returns:
        Whether it had others: it then cannot look into processes of this user that still have
        them, such as the one that started it.

    Raises:
        OSError: it is not allowed.
    """
    _call("prctl", _SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    kept = _READ_ANY_FILE if os.geteuid() == 0 else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    has = (ctypes.c_uint32 * 6)()
    _call("capget", header, has)
    both = has[1] & kept
    _call("capset", header, (ctypes.c_uint32 * 6)(both, both, 0, 0, 0, 0))
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)
    return bool(has[1] & ~kept or has[4])


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _call("mount", source.encode(), os.fsencode(target), kind.encode(), flags, options.encode())


def _call(name: str, *arguments: object) -> None:
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*words) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
