"""Landlock: permanently give up files, TCP ports and other processes (Linux 5.13 or later).

It is called through ctypes, because the interface is three system calls that the kernel keeps
stable. The bindings on PyPI are alpha releases, each by a single author.
"""

import ctypes
import os
import stat
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The numbers of the system calls, the same on all of Linux's architectures that run Python."""
_GET_VERSION = 1
_RULE_PATH_BENEATH = 1

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""The rights over files that each version of the interface added."""
_NETWORK_VERSION, _TCP_RIGHTS = 4, 0b11
SCOPE_VERSION, _SCOPES = 6, 0b11
"""Since this version, a process can be denied abstract Unix sockets and signals to outside."""


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def version() -> int:
    """Return the version of the kernel's interface.

    Raises:
        OSError: The kernel does not have Landlock, or does not allow it.
    """
    return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)


def restrict(readable: Iterable[str]) -> int:
    """Let this thread, and threads that it starts, only read these files.

    The process then cannot write, create or execute files, use TCP ports, or trace outside
    processes. Since version 6 it cannot send signals to them either. `no_new_privs` must be set.

    Args:
        readable: Files, and folders with everything below them. Missing ones are skipped.

    Returns:
        The version of the kernel's interface.

    Raises:
        OSError: The kernel does not have Landlock, or does not allow it.
    """
    known = version()
    files = 0
    for since, rights in _FILE_RIGHTS.items():
        files |= rights if known >= since else 0
    attributes = _Ruleset(
        files,
        _TCP_RIGHTS if known >= _NETWORK_VERSION else 0,
        _SCOPES if known >= SCOPE_VERSION else 0,
    )
    # A kernel rejects a structure that is longer than its own version of it.
    size = 24 if known >= SCOPE_VERSION else 16 if known >= _NETWORK_VERSION else 8
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    try:
        for path in readable:
            _allow_reading(ruleset, path)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return known


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rights = _READ_FILE | _READ_DIR if is_folder else _READ_FILE
        rule = _PathBeneath(rights, descriptor)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
