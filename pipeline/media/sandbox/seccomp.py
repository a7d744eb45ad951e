"""seccomp: permanently give up all system calls except those that decoding needs.

The filter comes from libseccomp, which knows the numbers of every architecture. It is called
through ctypes, because its binding on PyPI, pyseccomp, has had no release since 2021.
"""

import ctypes
import errno
import fcntl
import os
import sys

_LIBRARY = "libseccomp.so.2"
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_THREADS, _NO_MITIGATION, _OPTIMIZE = 4, 7, 8
"""Attributes: apply to all threads; no slow mitigation in old kernels; search a binary tree."""
_EQUAL, _MASKED_EQUAL = 4, 7

_CLONE_VM, _CLONE_THREAD = 0x100, 0x10000
_CLONE_NEW = 0x7E020080
"""All flags that create a new namespace."""
_MAP_SHARED = 1
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_CLOSE_ON_EXEC, _NOT_ON_EXEC, _IS_TERMINAL = 0x5451, 0x5450, 0x5401
_SET_THREAD_NAME, _GET_THREAD_NAME, _NAME_MEMORY = 15, 16, 0x53564D41

_ALLOWED = (
    "brk munmap mprotect mremap madvise membarrier read readv pread64 preadv write "
    "writev lseek close close_range dup dup2 dup3 fadvise64 stat fstat lstat newfstatat "
    "statx access faccessat faccessat2 readlink readlinkat getdents64 getcwd poll ppoll "
    "select pselect6 futex futex_time64 set_robust_list rseq sched_yield "
    "sched_getaffinity restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn "
    "sigaltstack clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time "
    "times getrusage getpid getppid gettid getuid geteuid getgid getegid getsid getpgrp "
    "uname sysinfo getrlimit getcpu getrandom exit exit_group"
)
"""The names of the calls that are allowed with any arguments."""


class _Condition(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


def _equal(argument: int, value: int) -> _Condition:
    return _Condition(argument, _EQUAL, value, 0)


def _masked(argument: int, mask: int, value: int) -> _Condition:
    return _Condition(argument, _MASKED_EQUAL, mask, value)


def _conditional() -> list[tuple[str, _Condition]]:
    """Return the system calls that are allowed only with certain arguments."""
    itself = os.getpid()
    new_thread = _CLONE_VM | _CLONE_THREAD
    duplicates = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL)
    return [
        # Files may be opened for reading only, and mapped privately.
        ("open", _masked(1, _WRITING, os.O_RDONLY)),
        ("openat", _masked(2, _WRITING, os.O_RDONLY)),
        ("mmap", _masked(3, _MAP_SHARED, 0)),
        # New threads are allowed, new processes are not.
        ("clone", _masked(0, new_thread | _CLONE_NEW, new_thread)),
        # Signals to this process itself, for abort(3) and raise(3).
        ("kill", _equal(0, itself)),
        ("tgkill", _equal(0, itself)),
        ("prlimit64", _equal(0, 0)),
        *(("fcntl", _equal(1, command)) for command in duplicates),
        *(("ioctl", _equal(1, what)) for what in (_CLOSE_ON_EXEC, _NOT_ON_EXEC, _IS_TERMINAL)),
        *(
            ("prctl", _equal(0, what))
            for what in (_SET_THREAD_NAME, _GET_THREAD_NAME, _NAME_MEMORY)
        ),
    ]


def restrict() -> None:
    """Allow all threads of this process only the system calls above. Others fail with ENOSYS.

    With ENOSYS instead of EPERM, C libraries that are newer than this list fall back to older
    calls. This process can then not start a process, open a socket, shared memory or a writable
    file, or signal or trace another process.

    Raises:
        OSError: The library is not installed, or the kernel does not allow it.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only Linux has it")
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise OSError(errno.ENOENT, f"{_LIBRARY} is not installed") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_load.argtypes = library.seccomp_release.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(_ERRNO | errno.ENOSYS)
    if not context:
        raise OSError(errno.ENOMEM, f"{_LIBRARY}: no filter could be made")
    try:
        _check(library.seccomp_attr_set(context, _THREADS, 1))
        for attribute, value in ((_NO_MITIGATION, 1), (_OPTIMIZE, 2)):
            library.seccomp_attr_set(context, attribute, value)  # since version 2.5
        for name in _ALLOWED.split():
            _allow(library, context, name)
        for name, condition in _conditional():
            _allow(library, context, name, condition)
        _check(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)


def _allow(library: ctypes.CDLL, context: int, name: str, *conditions: _Condition) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        return  # the architecture or an old library does not have this call
    array = (_Condition * len(conditions))(*conditions)
    _check(
        library.seccomp_rule_add_array(
            ctypes.c_void_p(context), ctypes.c_uint32(_ALLOW), number, len(conditions), array
        )
    )


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
