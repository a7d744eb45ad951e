"""Addresses of sources: their file systems, and web addresses with their queries.

The part of a web address that gives access (user name, password, token, signature) goes with the
files below it. It is not part of their names.
"""

import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.config.addresses import absolute_path, is_web, local_path
from shards.location import connection_options
from shards.redaction import redacted, secrets_of, without_secrets

_QUERY = re.compile(r"\?(?![\w.\-\[\]]+=)")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def filesystem_of(source: str) -> tuple[Any, str]:
    """Return the file system of a source, and its path there.

    Args:
        source: A path or URL.

    Raises:
        ValueError: There is no such protocol.
        ImportError: The protocol's package is missing.
    """
    path = local_path(source)
    if path is not None:
        return LocalFileSystem(), absolute_path(path)
    if is_web(source):
        # Imported only now, so that the configuration can be read without a web client.
        from pipeline.preprocess.sources.web_answers import bounded_client

        filesystem = fsspec.filesystem("http", get_client=bounded_client)
        return filesystem, source.replace("#", "%23")
    return fsspec.core.url_to_fs(source, **connection_options(source))


def base_of(source: str) -> str:
    """Return a source without its query, so that its ending tells its format."""
    return source.partition("?")[0] if is_web(source) else source


def folder_of(source: str) -> str:
    """Return the folder of a path or URL, with what gives access to the files there.

    A token is kept for the other files. The signature of one file is not.
    """
    path = base_of(source)
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    secret = secrets_of(source)[1] if is_web(source) else ""
    return with_query(folder, "" if _is_of_one_file(secret) else secret)


def file_name(source: str) -> str:
    """Return the last part of a path or URL, without its query."""
    return base_of(source).rpartition("/")[2]


def with_query(address: str, query: str) -> str:
    """Return a web address with more parameters."""
    if not query:
        return address
    return f"{address}{'&' if '?' in address else '?'}{query}"


def joined(root: str, path: str) -> str:
    """Return the address of a path below a root.

    Below a web address, the path is a reference: `name=value` after a question mark is its query,
    and `%41` is an escape. All other characters are parts of names.

    Args:
        root: A folder's path or URL.
        path: The path below it.
    """
    if not is_web(root):
        return f"{root.rstrip('/')}/{path}"
    base, secret = secrets_of(root)
    path = _LONE_PERCENT.sub("%25", _QUERY.sub("%3F", path)).replace("#", "%23")
    own = secrets_of(path)[1]
    return with_query(f"{base.rstrip('/')}/{path}", "" if own else secret)


def named(path: str, root: str) -> str:
    """Return a path without secrets, as it may be written.

    Args:
        path: A path below the root, or an address of its own.
        root: The root, which decides whether a path below it may have a query.
    """
    if "://" in path:
        return without_secrets(path)
    return redacted(secrets_of(path)[0]) if is_web(root) and "?" in path else path


def _is_of_one_file(query: str) -> bool:
    """Return whether a query holds the signature of a single file."""
    names = {
        name.lower(): value for name, _, value in (part.partition("=") for part in query.split("&"))
    }
    signed = any(name.endswith("signature") for name in names)
    return signed or ("sig" in names and names.get("sr", "").startswith("b"))
