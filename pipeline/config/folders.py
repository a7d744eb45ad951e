"""The folders of runs: a folder on this machine, or a prefix in object storage.

Object storage has neither renames, appends nor locks. `pipeline.runs.storage` writes to both kinds.
"""

from pathlib import Path

import fsspec
from upath import UPath

from pipeline.config.addresses import absolute_path, is_web, local_path
from pipeline.errors import UserError
from shards.redaction import redacted, without_secrets

Folder = Path | UPath
"""A local folder or file, or one at an fsspec URL. `str` gives an address for `folder_at`."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def folder_at(address: str) -> Folder:
    """Return the folder or file at a local path or an fsspec URL.

    Listings of a URL are not cached, because other machines write there, too.

    Raises:
        UserError: The URL is of a kind that fsspec does not know.
    """
    path = local_path(address)
    if path is not None:
        return Path(path)
    try:
        return UPath(address, use_listings_cache=False)
    except ValueError as error:
        raise UserError(f"{address}: cannot be opened ({error})") from None


def is_remote(folder: Folder) -> bool:
    """Return whether a folder lies at a URL and not on this machine."""
    return not isinstance(folder, Path)


def local_folder(folder: Folder, what: str) -> Path:
    """Return a folder of this machine.

    Args:
        folder: A folder of a run.
        what: What can write only there, as the subject of the error.

    Raises:
        UserError: The folder lies at a URL.
    """
    if isinstance(folder, Path):
        return folder
    raise UserError(f"{folder}: {what} writes to a folder, not to a URL; set output to a folder")


def output_address(output: str) -> str:
    """Return the address of an output folder: an absolute local path, or a URL.

    Raises:
        ValueError: The URL cannot hold runs, or holds a secret.
    """
    path = local_path(output)
    if path is not None:
        return absolute_path(path)
    scheme, _, rest = output.partition("://")
    if is_web(output):
        raise ValueError(
            f"is {redacted(output)!r}, which cannot be written; give a folder, or a URL such as "
            "s3://bucket/prefix"
        )
    if without_secrets(output) != output:
        raise ValueError(
            f"is {redacted(output)!r}, which holds a secret, and records name this address; give "
            "the secret where fsspec looks for it, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    try:
        fsspec.get_filesystem_class(scheme)
        UPath(output)
    except ValueError:
        raise ValueError(
            f"is {output!r}, and fsspec knows no {scheme!r}; give a folder, or a URL such as "
            "s3://bucket/prefix"
        ) from None
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        mend = f"pip install 'perceiver-pipeline[{extra}]'" if extra else str(error)
        raise ValueError(f"is {output!r}, and the package for it is missing: {mend}") from None
    if not rest.strip("/"):
        raise ValueError(f"is {output!r}, without a bucket; give one, such as {scheme}://bucket/a")
    return output.rstrip("/")
