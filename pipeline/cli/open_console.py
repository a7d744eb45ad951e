"""The console of a verb, and its log file."""

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.folders import Folder
    from pipeline.config.tree import Config
    from pipeline.runs.console import Console


@contextlib.contextmanager
def open_console(args: argparse.Namespace, config: "Config | None" = None) -> Iterator["Console"]:
    """Open the person's console. All other output goes to a log file.

    The log file lies in the run folder. Without a configuration, and for a run in object storage,
    it is a temporary file, which is removed unless an unexpected error occurs. It is copied to the
    object storage at the end.

    Args:
        args: The arguments of the verb.
        config: The configuration, if the verb has one.

    Raises:
        UserError: The folder of the log cannot be made.
    """
    from pipeline.errors import UserError
    from pipeline.runs.console import logged
    from pipeline.runs.user_errors import find_user_error

    folder = None
    run_folder = None if config is None else config.folder
    if config is not None and isinstance(run_folder, Path):
        folder = run_folder / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output={config.output}: {folder}: {error.strerror}") from None
    with logged({"as_json": args.json}, folder, args.verb) as console:
        log = console.log
        assert log is not None  # `logged` has opened it
        try:
            yield console
        except Exception as error:
            if find_user_error(error) is None:
                console.notice(f"log: {_kept(log, run_folder, args.verb)}")
            elif isinstance(run_folder, Path):
                _remove_if_alone(log, run_folder)
            else:
                _kept(log, run_folder, args.verb)
                log.unlink(missing_ok=True)
            raise
        if not isinstance(run_folder, Path):
            _kept(log, run_folder, args.verb)
            log.unlink(missing_ok=True)


def _kept(log: Path, run_folder: "Folder | None", verb: str) -> str:
    """Copy a log to a run in object storage, if the run has begun. Return where the log is."""
    from pipeline.errors import UserError
    from pipeline.runs.storage import exists, upload

    if run_folder is None or isinstance(run_folder, Path):
        return str(log)
    kept = run_folder / "logs" / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        if not exists(run_folder):
            return str(log)
        upload(log, kept)
    except UserError:  # the storage may be what failed
        return str(log)
    return str(kept)


def _remove_if_alone(log: Path, folder: Path) -> None:
    """Remove the log and its empty folders, if the run never began."""
    others = [path for path in folder.rglob("*") if path.is_file() and path.parent != log.parent]
    if others:
        return
    log.unlink()
    for path in (log.parent, *(p for p in folder.glob("*") if p.is_dir()), folder, folder.parent):
        with contextlib.suppress(OSError):
            path.rmdir()
