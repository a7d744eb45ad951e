"""Landlock: a process gives up files, TCP ports and others' processes, for good (Linux 5.13).

Called through ctypes: the interface is three system calls that the kernel keeps stable, and the
bindings on PyPI are alpha releases of one author each.
"""

import ctypes
import os
import stat
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on all of Linux's architectures that Python runs on."""
_GET_VERSION = 1
_RULE_PATH_BENEATH = 1

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""The rights over files that each version of the interface brings."""
_NETWORK_VERSION, _TCP_RIGHTS = 4, 0b11
SCOPE_VERSION, _SCOPES = 6, 0b11
"""From this version on: no abstract Unix socket of, and no signal to, a process outside."""


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
    """The version of the kernel's interface.

    Raises:
        OSError: the kernel has no Landlock, or does not allow it.
    """
    return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)


def restrict(readable: Iterable[str]) -> int:
    """Leave this thread, and those that it starts, nothing but reading these files.

    It can then write, create or execute no file, use no TCP port, and trace no process outside;
    from version 6 on it cannot signal one either. `no_new_privs` must be set.

    Args:
        readable: files, and folders with all that is below them. What does not exist is left out.

    Returns:
        The version of the kernel's interface.

    Raises:
        OSError: the kernel has no Landlock, or does not allow it.
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
    # A kernel refuses a structure that is longer than its own.
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
