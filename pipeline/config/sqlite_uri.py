"""Paths of SQLite databases to the URIs that MLflow takes, and back."""

from pathlib import Path
from urllib.parse import unquote

_SCHEME = "sqlite:///"
# MLflow makes the folder that a `sqlite:///` URI names before it undoes the escapes, and so
# another one than it needs; it leaves folders alone where the URI names the driver as well.
_SCHEME_OF_ESCAPED = "sqlite+pysqlite:///"


def sqlite_uri(path: Path) -> str:
    """The tracking URI of a database file, whatever characters its path has.

    Args:
        path: absolute.
    """
    text = str(path)
    escaped = text.replace("%", "%25").replace("?", "%3F")  # what SQLAlchemy reads otherwise
    return (_SCHEME if escaped == text else _SCHEME_OF_ESCAPED) + escaped


def sqlite_path(uri: str) -> Path | None:
    """The database file that a tracking URI names; None for a server or another database."""
    for scheme in (_SCHEME, _SCHEME_OF_ESCAPED):
        if uri.startswith(scheme):
            return Path(unquote(uri.removeprefix(scheme).partition("?")[0]))
    return None


def absolute_uri(uri: str) -> str:
    """A tracking URI that means the same in every working directory."""
    path = sqlite_path(uri)
    if path is None or path.is_absolute() or str(path) in ("", ".", ":memory:"):
        return uri
    options = "".join(uri.partition("?")[1:])
    return sqlite_uri(path.absolute()) + options
