"""A local cache for shards of remote sets: named by content, bounded, shared by processes."""

import errno
import fcntl
import hashlib
import mmap
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import ShardError
from shards.plain import is_sha256

_ANOTHER_HAS_IT = (errno.EWOULDBLOCK, errno.EACCES)
_TEMPORARY = ".part"
_LISTING = "evict"
_OURS = re.compile(rf"[0-9a-f]{{64}}(\.\d+-[0-9a-f]{{8}}{re.escape(_TEMPORARY)})?")
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class NoRoomError(ShardError):
    """All files in the cache are in use, so none can be evicted."""


class ShardCache:
    """Files named by their sha256. The least recently used files are evicted first.

    A file appears only when it is complete and its sha256 is checked. A file that any process reads
    is locked (flock) through its memory map and is not evicted. Files that a killed process left
    unfinished are removed. So any number of processes may share a folder on a local disk. Safe for
    several threads.

    Args:
        folder: The folder of the cache. It is created at the first write.
        max_bytes: The most bytes that all files may take, including unfinished ones.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, sha256: str, size: int, *, wait: bool = False) -> memoryview | None:
        """Return the memory-mapped file with this content, or None if the cache lacks it.

        The file is not evicted while anything refers to a part of the map.

        Args:
            sha256: The sha256 of the file, 64 hexadecimal digits.
            size: The size of the file in bytes.
            wait: Whether to wait for another process that is writing the file.

        Raises:
            ShardError: The folder cannot be read.
        """
        _check_digest(sha256)
        if (view := self._open(sha256, size)) is not None or not wait:
            return view
        if not self._locks.is_dir():
            return None
        with self._lock(_stripe(sha256)):
            return self._open(sha256, size)

    def add(self, sha256: str, size: int, chunks: Iterator[bytes]) -> memoryview:
        """Store a file, unless another process has stored it in the meantime.

        Args:
            sha256: The expected sha256, 64 hexadecimal digits.
            size: The expected size in bytes.
            chunks: The content. An exception that this iterator raises passes through.

        Returns:
            The memory-mapped file, as `open` returns it.

        Raises:
            NoRoomError: The files in use leave fewer than `size` bytes free.
            ShardError: The content has another size or sha256, or the file system fails.
        """
        _check_digest(sha256)
        with self._refusing():
            self._locks.mkdir(parents=True, exist_ok=True)
        with self._lock(_stripe(sha256)):
            if (view := self._open(sha256, size)) is not None:
                return view
            return self._write(sha256, size, chunks)

    def total_bytes(self) -> int:
        """Return the bytes of all files, including unfinished ones.

        Raises:
            ShardError: The folder cannot be read, or nothing was ever written to it.
        """
        with self._lock(_LISTING):
            return sum(size for _, size, _ in self._files())

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    def _open(self, sha256: str, size: int) -> memoryview | None:
        path = self.folder / sha256
        with self._refusing():
            try:
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                return None
        try:
            with self._refusing():
                if not _try_lock(descriptor, fcntl.LOCK_SH):
                    return None  # another process is evicting it
                facts = os.fstat(descriptor)
                if not stat.S_ISREG(facts.st_mode):
                    raise ShardError(f"{path}: is not a file of this cache; remove it")
                if not facts.st_nlink:
                    return None
                if facts.st_size != size:
                    # Either the file is damaged, and `add` replaces it. Or the set states a wrong
                    # size, and another set must not lose its file because of that.
                    return None
                os.utime(path)
                # The map keeps a duplicate of the descriptor, and so the lock.
                return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)

    def _write(self, sha256: str, size: int, chunks: Iterator[bytes]) -> memoryview:
        with self._refusing():
            descriptor, path = self._reserve(sha256, size)
        try:
            found, written = hashlib.sha256(), 0
            for chunk in chunks:
                found.update(chunk)
                with self._refusing():
                    written += os.pwrite(descriptor, chunk, written)
            if written != size or found.hexdigest() != sha256:
                raise ShardError(
                    f"{written} bytes with sha256 {found.hexdigest()} were read, "
                    f"instead of {size} with {sha256}; run 'perceiver verify' on the set"
                )
            with self._refusing():
                os.fsync(descriptor)
            # A listing may miss a file that is renamed meanwhile, and so keep too many.
            with self._lock(_LISTING), self._refusing():
                path.rename(self.folder / sha256)
                return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _reserve(self, sha256: str, size: int) -> tuple[int, Path]:
        """Make room, then create a locked file of `size` bytes under a temporary name."""
        path = self.folder / f"{sha256}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY}"
        with self._lock(_LISTING):
            self._make_room(size)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                os.posix_fallocate(descriptor, 0, size)
            except BaseException:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                raise
        return descriptor, path

    def _make_room(self, size: int) -> None:
        files = sorted(self._files())
        too_many = sum(file_size for _, file_size, _ in files) + size - self.max_bytes
        for _, file_size, path in files:
            if (too_many > 0 or path.suffix == _TEMPORARY) and _remove_unused(path):
                too_many -= file_size
        if too_many > 0:
            raise NoRoomError(
                f"{self.folder}: the cache of {self.max_bytes} bytes is full of shards in use, and "
                f"another {size} bytes do not fit; allow it more bytes or use a smaller window"
            )

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (time of last use in ns, bytes, path) for each file that this class wrote."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        facts = entry.stat(follow_symlinks=False)
                        yield facts.st_mtime_ns, facts.st_size, Path(entry.path)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold one of the folder's locks against all other threads and processes."""
        with self._refusing():
            descriptor = os.open(self._locks / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with self._refusing():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ShardError(
                f"{self.folder}: cannot keep shards ({error.strerror}); free space, allow the "
                "cache fewer bytes or choose another folder"
            ) from error


def _check_digest(sha256: str) -> None:
    """Reject anything but a sha256: the name comes from a set, which may be hostile."""
    if not is_sha256(sha256):
        raise ShardError(f"{sha256!r} is not the sha256 of a shard; do not use this set")


def _stripe(sha256: str) -> str:
    """Return the name of the lock for writing a file. A few files share each lock."""
    return sha256[:3]


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _ANOTHER_HAS_IT:
            return False
        raise
    return True


def _remove_unused(path: Path) -> bool:
    """Remove a file unless it is locked. Return whether the file is gone."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
