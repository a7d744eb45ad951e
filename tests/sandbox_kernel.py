"""What this machine's kernel offers a sandbox, asked without the sandbox's own code."""

import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from pipeline.media.sandbox.lockdown import PROTECTIONS

_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x40000000
_CAN_READ_ANY_FILE, _CAN_ADMINISTER = 1 << 2, 1 << 21


def landlock_version() -> int:
    """0 where there is none."""
    create_ruleset, get_version = ctypes.c_long(444), 1
    return max(0, ctypes.CDLL(None).syscall(create_ruleset, None, ctypes.c_size_t(0), get_version))


def has_seccomp() -> bool:
    """Whether there is the library, and a kernel that filters."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    get_seccomp = 21
    return ctypes.CDLL(None).prctl(get_seccomp, 0, 0, 0, 0) >= 0


def capabilities() -> int:
    """This process's, as bits."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("CapPrm:")), 16)


@functools.cache
def may_unshare(*, as_user: bool, mounts: bool = False) -> bool:
    """Whether a process may have a network, and perhaps mounts, of its own."""
    flags = _NEW_NETWORK | _NEW_IPC | _NEW_MOUNTS * mounts | _NEW_USER * as_user
    user, group = os.geteuid(), os.getegid()
    program = f"""
import ctypes
from pathlib import Path
libc = ctypes.CDLL(None)
assert not libc.unshare({flags})
if {as_user}:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("{user} {user} 1")
    Path("/proc/self/gid_map").write_text("{group} {group} 1")
recursive, private = 16384, 1 << 18
assert not {mounts} or not libc.mount(b"none", b"/", b"", recursive | private, b"")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    return done.returncode == 0


def expected_layers(user: str, blocked: Collection[str]) -> dict[str, list[str]]:
    """The layers that must hold, by protection, as `Lockdown` names them.

    Args:
        user: `root`, whoever runs the tests, or `user`, one without capabilities.
        blocked: layers that the kernel is not to have, as `sandbox_parent` takes them.
    """
    held = capabilities() if user == "root" else 0
    kept = _CAN_READ_ANY_FILE if user == "root" and os.geteuid() == 0 else 0
    is_administrator = bool(held & _CAN_ADMINISTER)
    landlock = 0 if "landlock" in blocked else landlock_version()
    seccomp = "seccomp" not in blocked and has_seccomp()
    network = "namespaces" not in blocked and may_unshare(as_user=not is_administrator)
    mounts = network and not landlock and may_unshare(as_user=not is_administrator, mounts=True)
    own_user = network and not is_administrator
    layers = {
        "an emptied environment": (True, "environment"),
        "network namespace": (network, "network"),
        "user namespace": (own_user, "memory"),
        "mount namespace": (mounts, "reading writing"),
        "dropped capabilities": (bool(held & ~kept) and not own_user, "memory"),
        "no new privileges": (True, "privileges"),
        "Landlock": (bool(landlock), "reading writing memory" + " signals" * (landlock >= 6)),
        "seccomp": (seccomp, "writing network processes signals"),
    }
    return {
        name: [layer for layer, (holds, of) in layers.items() if holds and name in of.split()]
        for name in PROTECTIONS
    }
