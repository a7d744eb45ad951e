"""The access that the child of the sandbox gives up before it reads a file.

Each protection has at least one layer that enforces it, or is reported as missing with a reason.
"""

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import pkgutil
import resource
import signal
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.media.sandbox import landlock, namespaces, seccomp

PROTECTIONS = {
    "environment": (),
    "privileges": ("capabilities",),
    "reading": ("Landlock", "namespaces", "mount namespace"),
    "writing": ("seccomp", "Landlock", "namespaces", "mount namespace"),
    "network": ("seccomp", "namespaces"),
    "processes": ("seccomp",),
    "signals": ("seccomp", "Landlock"),
    "memory": ("Landlock", "namespaces", "capabilities"),
}
"""What a hijacked decoder must not reach, and the layers that may prevent it.

environment: the parent's variables and open files. privileges: capabilities, and programs that
grant them. reading, writing: files other than Python's and its packages'. network: any socket.
processes: other programs, and processes that outlive the sandbox. signals: to other processes.
memory: of other processes, also through /proc or a debugger.
"""

_SYSTEM_LIBRARIES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64",
    "/nix/store", "/gnu/store", "/etc/ld.so.cache",
)  # fmt: skip
_SYSTEM_FACTS = ("/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo", "/sys/devices/system/cpu")
_MAX_OPEN_FILES = 256


@dataclass
class Lockdown:
    """The layers that are active in this process, and those that are not.

    Attributes:
        layers: For each protection, the names of the layers that enforce it.
        failed: For each layer that could not be activated, the reason.
    """

    layers: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in PROTECTIONS})
    failed: dict[str, str] = field(default_factory=dict)

    def before_imports(self) -> None:
        """Activate the layers that still allow imports. The process must have only one thread."""
        self._add("an emptied environment", "environment")
        self._limit()
        if sys.platform != "linux":
            self.failed |= dict.fromkeys(
                ("Landlock", "namespaces", "capabilities", "seccomp"), "only Linux has it"
            )
            return
        readable = prepare_imports()
        if len([*Path("/proc/self/task").iterdir()]) > 1:
            raise RuntimeError("a thread was started before the sandbox was closed")
        version = self._landlock_version()
        is_own_user = self._leave_namespaces(readable, with_mounts=version is None)
        try:
            if namespaces.drop_privileges() and not is_own_user:
                self._add("dropped capabilities", "memory")
            self._add("no new privileges", "privileges")
        except OSError as error:
            self.failed["capabilities"] = _reason(error)
        if version is not None:
            self._lock_files(readable)

    def after_imports(self) -> None:
        """Activate the filter of system calls, which applies to all threads."""
        if sys.platform != "linux":
            return
        try:
            seccomp.restrict()
        except OSError as error:
            self.failed["seccomp"] = _reason(error)
            return
        self._add("seccomp", "writing", "network", "processes", "signals")

    def missing(self) -> dict[str, str]:
        """Return the protections that no layer enforces, and the reasons."""
        return {name: self._why(name) for name, layers in self.layers.items() if not layers}

    def _why(self, name: str) -> str:
        failed = (layer for layer in PROTECTIONS[name] if layer in self.failed)
        return "; ".join(f"{layer}: {self.failed[layer]}" for layer in failed)

    def _add(self, layer: str, *names: str) -> None:
        for name in names:
            self.layers[name].append(layer)

    def _limit(self) -> None:
        for limit, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        ):
            with contextlib.suppress(ValueError):  # the limit is already lower
                resource.setrlimit(limit, (most, most))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def _landlock_version(self) -> int | None:
        try:
            return landlock.version()
        except OSError as error:
            self.failed["Landlock"] = _reason(error)
            return None

    def _leave_namespaces(self, readable: Sequence[str], *, with_mounts: bool) -> bool:
        """Move to new namespaces. Return whether this process is in a new user namespace."""
        try:
            is_own_user = namespaces.leave_network(with_mounts=with_mounts)
        except OSError as error:
            self.failed["namespaces"] = _reason(error)
            return False
        self._add("network namespace", "network")
        if is_own_user:
            self._add("user namespace", "memory")
        if with_mounts:
            try:
                namespaces.leave_files(readable)
            except OSError as error:
                self.failed["mount namespace"] = _reason(error)
                return is_own_user
            self._add("mount namespace", "reading", "writing")
        return is_own_user

    def _lock_files(self, readable: Sequence[str]) -> None:
        try:
            version = landlock.restrict(readable)
        except OSError as error:
            self.failed["Landlock"] = _reason(error)
            return
        self._add("Landlock", "reading", "writing", "memory")
        if version >= landlock.SCOPE_VERSION:
            self._add("Landlock", "signals")


def prepare_imports() -> list[str]:
    """Restrict imports to installed packages, and return all files that imports need.

    A folder of `sys.path` that does not contain installed packages may be someone's working folder.
    Its modules can be imported, but its other files must stay unreadable.
    """
    readable = [*_SYSTEM_LIBRARIES, *_SYSTEM_FACTS, *_libraries_of_python()]
    loose: dict[str, str] = {}
    package_folders: list[str] = []
    find = importlib.machinery.PathFinder.find_spec
    for entry in sys.path:
        folder = Path(entry)
        if _is_of_packages(folder):
            readable.append(entry)
            package_folders.append(entry)
        elif folder.is_dir():
            for module in pkgutil.iter_modules([entry]):
                if module.name not in loose and find(module.name, package_folders) is None:
                    loose[module.name] = entry
    sys.path[:] = package_folders
    finder = _Modules(loose)
    # Place it before the folders of packages and before editable installations.
    sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder), finder)
    return [*dict.fromkeys(readable + finder.files())]


def _libraries_of_python() -> list[str]:
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    found = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    found += [str(Path(prefix, "lib")) for prefix in sorted(prefixes)]
    return found + [path for path in os.getenv("LD_LIBRARY_PATH", "").split(os.pathsep) if path]


def _is_of_packages(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.is_file()  # a zip file of modules
    of_python = any(
        folder.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")
    )
    named = folder.name in ("site-packages", "dist-packages")
    return of_python or named or any(folder.glob("*.dist-info"))


class _Modules:
    """Find the top-level modules of some folders without listing the folders again.

    Args:
        folders: Maps each module to its folder.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        self._specs = {}
        for name, folder in folders.items():
            spec = importlib.machinery.PathFinder.find_spec(name, [folder])
            if spec is not None and spec.origin is not None:
                self._specs[name] = spec

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's specification, or None if it is not in these folders."""
        found = self._specs.get(name)
        if found is None:
            return None
        locations = found.submodule_search_locations
        return importlib.util.spec_from_file_location(
            name,
            found.origin,
            submodule_search_locations=None if locations is None else list(locations),
        )

    def files(self) -> list[str]:
        """Return the modules' files and the packages' folders."""
        found = []
        for spec in self._specs.values():
            assert spec.origin is not None
            found.append(str(Path(spec.origin).parent) if spec.submodule_search_locations
                         else spec.origin)  # fmt: skip
        return found


def die_with(parent: int) -> None:
    """Ignore keyboard interrupts, and end when the parent ends.

    Linux also kills the child when the parent's thread that started it ends; then the parent starts
    another child. A change of privileges clears this setting, so it must be made afterwards.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
