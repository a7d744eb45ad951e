"""What a source may name: files below its own root, and what the configuration allows besides.

The rows of a listing are not trusted. If a row could name any path or address, it could copy
private files into shards, or send requests from this machine to servers that its author cannot
reach.
"""

import os
import posixpath
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from fsspec.implementations.local import LocalFileSystem

from pipeline.config.addresses import absolute_path, is_web, local_path
from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.addresses import filesystem_of, joined, with_query
from pipeline.preprocess.sources.local_files import OUTSIDE
from shards.redaction import secrets_of

MAX_FILE_BYTES = 2 * 1024**3
_PORTS = {"http": 80, "https": 443}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://(?![\\/])[^\s\\\x00-\x1f\x7f]*")
_UNESCAPED = 8
"""A path may be escaped so often. Servers and proxies undo escapes more than once."""


@dataclass(frozen=True)
class Reach:
    """The files that one split may read.

    Attributes:
        root: The folder or URL of the split, with what gives access to it.
        allow: More folders and URLs, from `data.allow`.
        max_file_bytes: The largest size of one file, from `data.max_file_bytes`.
        confined: Whether only files below the root and `allow` may be read. False for tars, whose
            paths all come from the configuration.
    """

    root: str
    allow: tuple[str, ...] = ()
    max_file_bytes: int = MAX_FILE_BYTES
    confined: bool = True

    def resolve(self, path: str) -> tuple[Any, str]:
        """Return the file system of a file, and its path there, with what gives access to it.

        A local path may lead elsewhere by links. So once the file is open, ask `holds` about its
        real path.

        Args:
            path: A path below the root, an absolute path, or a URL.

        Raises:
            MediaError: The file may not be read; the text says why.
            ValueError: There is no such protocol.
            ImportError: The protocol's package is missing.
        """
        if "://" in path:
            local = local_path(path)
            return filesystem_of(self._url(path)) if local is None else self._local(local)
        if path.startswith("/"):
            return self._local(path)
        if is_web(self.root):
            url = joined(self.root, path)
            return filesystem_of(self._url(url) if self.confined else url)
        filesystem, base = filesystem_of(self.root)
        # A local disk reports where a path leads. Other file systems interpret `..` in their own
        # ways.
        if local_path(self.root) is None and ".." in re.split(r"[/\\]", path):
            raise MediaError(OUTSIDE)
        return filesystem, f"{base.rstrip('/')}/{path}"

    def holds(self, real_path: str) -> bool:
        """Return whether a local path may be read. It must be absolute and without links."""
        return not self.confined or any(
            real_path == prefix or real_path.startswith(prefix.rstrip("/") + "/")
            for prefix in self._folders
        )

    def holds_url(self, url: str) -> bool:
        """Return whether a URL may be requested, such as a file's or the target of a redirect."""
        try:
            self._url(url)
        except MediaError:
            return False
        return True

    def _local(self, path: str) -> tuple[Any, str]:
        """Return an absolute path, unless no local file may be read at all."""
        # A link may lead below an allowed folder. Without any such folder, none can.
        if not path.startswith("/") or (self.confined and not self._folders):
            raise MediaError(OUTSIDE)
        return LocalFileSystem(), path

    def _url(self, url: str) -> str:
        address = _Location.of(url)
        for prefix in self._prefixes:
            if prefix.holds(address):
                return prefix.opening(address)
        raise MediaError(OUTSIDE)

    @cached_property
    def _folders(self) -> tuple[str, ...]:
        paths = map(local_path, (self.root, *self.allow))
        return tuple(os.path.realpath(absolute_path(path)) for path in paths if path is not None)

    @cached_property
    def _prefixes(self) -> tuple["_Location", ...]:
        # A chain of file systems has no addresses of its own.
        urls = (url for url in (self.root, *self.allow) if local_path(url) is None)
        return tuple(_Location.of(url) for url in urls if is_web(url) or "::" not in url)


@dataclass(frozen=True)
class _Location:
    """A URL split into its parts, so that two can be compared.

    Attributes:
        url: The URL as given.
        server: The scheme, host and port; for object stores the scheme and bucket.
        names: The names of folders and file, unescaped, without `.` and `..`.
        userinfo: The user name and password, or an empty text.
    """

    url: str
    server: tuple[str, str, int | None]
    names: tuple[str, ...]
    userinfo: str

    @classmethod
    def of(cls, url: str) -> "_Location":
        """Split a URL.

        Raises:
            MediaError: It is not one plain URL.
        """
        if _PLAIN.match(url) is None or ("::" in url and not is_web(url)):
            raise MediaError("its address is not plain: one URL, not several in a chain")
        if is_web(url):
            url = url.replace("#", "%23")
        try:
            parts = urlsplit(url)
            userinfo, _, _ = parts.netloc.rpartition("@")
            server = _server(parts)
        except (ValueError, UnicodeError) as error:
            raise MediaError("its address is not plain") from error
        path = parts.path if is_web(url) else url.partition("://")[2].partition("/")[2]
        if _PLAIN.fullmatch(url.partition("?")[0].replace(" ", "")) is None:
            raise MediaError("its address is not plain")
        return cls(url, server, _names(path), userinfo if is_web(url) else "")

    def holds(self, other: "_Location") -> bool:
        """Return whether the other URL lies at or below this one. Only whole names count.

        Raises:
            MediaError: The other URL has a user name that this one lacks.
        """
        same = self.server == other.server and other.names[: len(self.names)] == self.names
        if same and other.userinfo not in ("", self.userinfo):
            raise MediaError(
                "its address holds a user name; give that in data.train or data.allow instead"
            )
        return same

    def opening(self, other: "_Location") -> str:
        """Return the other URL with what gives access to this one, unless it has its own."""
        url = other.url
        if not is_web(url):
            return url
        if self.userinfo and not other.userinfo:
            scheme, _, rest = url.partition("://")
            url = f"{scheme}://{self.userinfo}@{rest}"
        return url if secrets_of(url)[1] else with_query(url, secrets_of(self.url)[1])


def _server(parts: SplitResult) -> tuple[str, str, int | None]:
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        return scheme, parts.netloc, None
    host = (parts.hostname or "").rstrip(".")
    if not host:
        raise ValueError("no host")
    return scheme, host.encode("idna").decode("ascii"), parts.port or _PORTS[scheme]


def _names(path: str) -> tuple[str, ...]:
    """Return the names in a path, as any server may read it.

    Raises:
        MediaError: It is escaped too often, or hides a step upwards.
    """
    for _ in range(_UNESCAPED):
        plain = unquote(path, errors="surrogateescape")
        if plain == path:
            break
        path = plain
    else:
        raise MediaError("its address is not plain: it is escaped many times")
    names = re.split(r"[/\\]+", path.strip("/\\"))
    if any(name.partition(";")[0] in (".", "..") and ";" in name for name in names):
        raise MediaError("its address is not plain")
    normal = posixpath.normpath("/" + "/".join(names)).strip("/")
    return tuple(normal.split("/")) if normal else ()
