"""Namespaces and privileges that a process leaves, by system calls of every common Linux."""

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x40000000

_SET_DUMPABLE, _SET_NO_NEW_PRIVILEGES = 4, 38
_CAPABILITIES_VERSION = 0x20080522
_READ_ANY_FILE = 1 << 2
"""CAP_DAC_READ_SEARCH: packages that root uses may be in another user's folder."""

_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = {os.ST_NOSUID: 2, os.ST_NODEV: 4, os.ST_NOEXEC: 8, os.ST_NOATIME: 1024,
               os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}  # fmt: skip
"""Flags of a mount, from statvfs(3) to mount(2). A namespace may not remove them."""

_EMPTY = "/tmp"
"""A folder that exists on every system. The new root is mounted on it, for this process only."""


def leave_network(*, with_mounts: bool) -> bool:
    """Move this process into its own network, which has no interfaces.

    The process must have only one thread. System V's shared memory and queues become its own too. A
    user without the permission first gets a user namespace, which has no access to the memory of
    other processes.

    Args:
        with_mounts: Whether to create a separate table of mounts, which `leave_files` needs.

    Returns:
        Whether there is a new user namespace.

    Raises:
        OSError: The system does not allow it.
    """
    flags = _NEW_NETWORK | _NEW_IPC | (_NEW_MOUNTS if with_mounts else 0)
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", flags)
    except PermissionError:
        _call("unshare", flags | _NEW_USER)
    else:
        return False
    # Without a mapping of its user and group, the process could not mount anything.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def leave_files(readable: Iterable[str]) -> None:
    """Give this process a root that contains only these files and folders, read-only.

    This needs `leave_network` with `with_mounts`. The process could undo it until its privileges
    are dropped.

    Args:
        readable: The files and folders. Missing ones are skipped.

    Raises:
        OSError: The system does not allow it.
    """
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    paths = _outermost(readable)
    # The mount on _EMPTY hides what is below it, but not from this descriptor.
    hidden = os.open(_EMPTY, os.O_PATH)
    _mount("none", _EMPTY, "tmpfs", options="size=1m,mode=755")
    for path in paths:
        is_hidden = Path(path).is_relative_to(_EMPTY)
        place = os.path.relpath(path, _EMPTY) if is_hidden else path
        # One at a time: there may be more paths than a process may have open files.
        descriptor = os.open(place, os.O_PATH, dir_fd=hidden if is_hidden else None)
        try:
            _bind(descriptor, Path(f"{_EMPTY}{path}"))
        finally:
            os.close(descriptor)
    os.close(hidden)
    _mount("none", _EMPTY, flags=_REMOUNT | _READ_ONLY)
    os.chdir(_EMPTY)
    os.chroot(".")


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that exist, without those that are below another one."""
    found: list[str] = []
    for path in sorted(path for path in paths if Path(path).exists()):
        if not found or not Path(path).is_relative_to(found[-1]):
            found.append(path)
    return found


def _bind(descriptor: int, target: Path) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(f"/proc/self/fd/{descriptor}", str(target), flags=_BIND | _RECURSIVE)
    has = os.statvfs(target).f_flag
    kept_flags = sum(flag for reported, flag in _KEPT_FLAGS.items() if has & reported)
    _mount("none", str(target), flags=_BIND | _REMOUNT | _READ_ONLY | kept_flags)


def drop_privileges() -> bool:
    """Give up all capabilities permanently, and hide this process from other processes.

    As root it can still read what root may read.

    Returns:
        Whether it had other capabilities. If so, it can no longer inspect this user's processes
        that still have them, such as its parent.

    Raises:
        OSError: The system does not allow it.
    """
    _call("prctl", _SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    allowed = _READ_ANY_FILE if os.geteuid() == 0 else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    has = (ctypes.c_uint32 * 6)()
    _call("capget", header, has)
    both = has[1] & allowed
    _call("capset", header, (ctypes.c_uint32 * 6)(both, both, 0, 0, 0, 0))
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)
    return bool(has[1] & ~allowed or has[4])


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _call("mount", source.encode(), os.fsencode(target), kind.encode(), flags, options.encode())


def _call(name: str, *arguments: object) -> None:
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*words) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
