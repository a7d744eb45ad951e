"""Converts paths of SQLite databases to the URIs that MLflow takes, and back."""

from pathlib import Path
from urllib.parse import unquote

_SCHEME = "sqlite:///"
# MLflow creates the folder of a `sqlite:///` URI before it decodes the escapes, and so a wrong one.
# If the URI also names the driver, MLflow does not create a folder.
_SCHEME_OF_ESCAPED = "sqlite+pysqlite:///"


def sqlite_uri(path: Path) -> str:
    """Return the tracking URI of a database file, whatever characters its path has.

    Args:
        path: An absolute path.
    """
    text = str(path)
    escaped = text.replace("%", "%25").replace("?", "%3F")  # SQLAlchemy would interpret these
    return (_SCHEME if escaped == text else _SCHEME_OF_ESCAPED) + escaped


def sqlite_path(uri: str) -> Path | None:
    """Return the database file that a tracking URI names; None for a server or another database."""
    for scheme in (_SCHEME, _SCHEME_OF_ESCAPED):
        if uri.startswith(scheme):
            return Path(unquote(uri.removeprefix(scheme).partition("?")[0]))
    return None


def absolute_uri(uri: str) -> str:
    """Return a tracking URI that means the same in every working directory."""
    path = sqlite_path(uri)
    if path is None or path.is_absolute() or str(path) in ("", ".", ":memory:"):
        return uri
    options = "".join(uri.partition("?")[1:])
    return sqlite_uri(path.absolute()) + options
