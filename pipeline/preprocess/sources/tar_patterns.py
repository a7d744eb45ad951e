"""Finds the tars that a path, a glob, a brace range or a folder names."""

import glob
import os
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

from pipeline.config.addresses import is_web, local_path
from pipeline.errors import UserError
from pipeline.preprocess.sources.addresses import filesystem_of, with_query
from pipeline.preprocess.sources.parts import exists, is_folder
from pipeline.preprocess.sources.walk import is_local, walk
from shards.redaction import secrets_of

MAX_TARS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAGIC = re.compile(r"[*?\[{]")
_MAGIC_OF_WEB = re.compile(r"[*{]")


def find_tars(pattern: str, field: str) -> tuple[str, list[str]]:
    """Find the tars that a pattern names.

    If a file or folder has exactly the name of the pattern, the pattern means that one. So a folder
    may be called `set [v2]`, even if a glob follows it.

    Args:
        pattern: A tar, a glob or brace range of tars, or their folder; a path or URL.
        field: The field of the configuration, for errors.

    Returns:
        The folder that all tars lie in, with what gives access to it, and their sorted paths below
        it.

    Raises:
        UserError: There is no tar, or one of a range is missing.
    """
    base, secret = secrets_of(pattern) if is_web(pattern) else (pattern, "")
    found = sorted(set(_matching(base, secret, pattern, field)))
    if not found:
        raise UserError(f"{field}={pattern}: names no .tar file")
    root = _common_folder(found)
    return with_query(root, secret), [path[len(root.rstrip("/")) + 1 :] for path in found]


def _matching(base: str, secret: str, pattern: str, field: str) -> Iterator[str]:
    """Yield the paths or URLs, without secrets in their queries."""
    filesystem, whole = filesystem_of(with_query(base, secret))
    whole = base if is_web(base) else whole
    prefix, rest = _literal_start(filesystem, whole, secret)
    if not rest:
        yield from _tars_at(filesystem, whole, secret, pattern, field)
        return
    for each in _expanded(rest, pattern, field):
        path = f"{prefix.rstrip('/')}/{each}" if prefix else each
        if _magic(path).search(each) and not _is_there(filesystem, path, secret):
            globbed = _globbed(filesystem, prefix, each)
            yield from (_address(pattern, filesystem, name) for name in globbed)
        else:
            yield from _tars_at(filesystem, path, secret, pattern, field)


def _tars_at(filesystem: Any, path: str, secret: str, pattern: str, field: str) -> Iterator[str]:
    """Yield the tar itself, or the tars in the folder."""
    asked = with_query(path, secret)
    if is_folder(filesystem, asked):
        for file in walk(filesystem, asked):
            if file.reason is None and file.path.endswith(b".tar"):
                yield _address(pattern, filesystem, f"{path.rstrip('/')}/{os.fsdecode(file.path)}")
    elif exists(filesystem, asked):
        yield _address(pattern, filesystem, path)
    else:
        raise UserError(f"{field}={pattern}: no such file: {_address(pattern, filesystem, path)}")


def _literal_start(filesystem: Any, path: str, secret: str) -> tuple[str, str]:
    """Split a pattern at a slash into a start that exists literally, and the rest."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if _magic(path).search(part):
            start = "/".join(parts[: index + 1])
            if not _is_there(filesystem, start, secret):
                return "/".join(parts[:index]), "/".join(parts[index:])
    return path, ""


def _is_there(filesystem: Any, path: str, secret: str) -> bool:
    return exists(filesystem, with_query(path, secret))


def _magic(path: str) -> re.Pattern[str]:
    return _MAGIC_OF_WEB if is_web(path) else _MAGIC


def _globbed(filesystem: Any, prefix: str, pattern: str) -> list[str]:
    """Return the `.tar` files that a glob matches, or else with its brackets taken literally."""
    for each in dict.fromkeys((pattern, pattern.replace("[", "[[]"))):
        whole = f"{glob.escape(prefix).rstrip('/')}/{each}"
        if is_local(filesystem):
            names = glob.glob(whole, recursive=True, include_hidden=True)  # noqa: PTH207 - any name
        else:
            names = filesystem.glob(whole)
        if found := [name for name in names if name.endswith(".tar")]:
            return found
    return []


def _address(pattern: str, filesystem: Any, path: str) -> str:
    """Return a path of a file system in the form of the configuration's addresses."""
    if local_path(pattern) is not None or is_web(path):
        return path
    return str(filesystem.unstrip_protocol(path))


def _common_folder(paths: list[str]) -> str:
    """Return the deepest folder that all sorted paths lie in. Slashes in URLs stay as they are."""
    first, last = (
        path.partition("?")[0] if is_web(path) else path for path in (paths[0], paths[-1])
    )
    names, others = first.split("/")[:-1], last.split("/")[:-1]
    same = 0
    while same < min(len(names), len(others)) and names[same] == others[same]:
        same += 1
    return "/".join(names[:same]) or "/"


def _expanded(rest: str, pattern: str, field: str) -> Iterator[str]:
    """Write out braces: `{00..10}` counts, and `{a,b}` lists."""
    pieces = _BRACES.split(rest)
    choices: list[list[str]] = []
    total = 1
    for number, piece in enumerate(pieces):
        choice = [piece] if number % 2 == 0 else _brace(piece, pattern, field)
        total *= len(choice)
        if total > MAX_TARS:
            raise UserError(f"{field}={pattern}: names more than {MAX_TARS} tars")
        choices.append(choice)
    return map("".join, product(*choices))


def _brace(inner: str, pattern: str, field: str) -> list[str]:
    counted = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inner)
    if counted:
        first, last = counted.groups()
        if int(first) <= int(last) < int(first) + MAX_TARS:
            return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    elif "," in inner:
        return inner.split(",")
    raise UserError(f"{field}={pattern}: {{{inner}}} is not a range such as {{000..127}}")
