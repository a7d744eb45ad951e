"""Command lines whose options may stand anywhere among the other arguments."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# No argument of a process can hold this character.
_MARK = "\0"


class RedactedParser(argparse.ArgumentParser):
    """A parser whose errors show no secrets of addresses."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with status 2, as argparse does."""
        from shards.redaction import redacted

        super().error(redacted(message))


class IntermixedParser(RedactedParser):
    """A parser that reads `CONFIG --json a.b=1` as `--json CONFIG a.b=1`.

    By default argparse accepts a list of arguments only in one piece. What follows `--` is never an
    option.
    """

    _inside = False

    def arguments(self) -> list[argparse.Action]:
        """Return the arguments that were added, both options and positional ones."""
        return [action for action in self._actions if action.dest != "help"]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse, with options and arguments in any order."""
        if self._inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        given = list(sys.argv[1:] if args is None else args)
        self._inside = True
        try:
            found, unknown = self.parse_known_intermixed_args(_marked(given), namespace)
        finally:
            self._inside = False
        for name, value in vars(found).items():
            setattr(found, name, _unmarked(value))
        return found, _unmarked(unknown)


def local_path(text: str) -> str:
    """Return the text unchanged. This type marks an argument as a path on this machine."""
    return text


def folder_or_name(text: str) -> str:
    """Return the absolute path if the text names a folder on this machine, and else the text."""
    path = Path(text).expanduser()
    return str(path.absolute()) if "://" not in text and path.is_dir() else text


def run_or_model(text: str) -> str:
    """Return the absolute path of a run's folder, and any other text unchanged.

    A bare name may also be that of a registered model. It is a folder only if a run has worked
    there.
    """
    is_bare = "/" not in text
    return text if is_bare and not Path(text, "stages").is_dir() else folder_or_name(text)


def json_target(text: str) -> str:
    """Return `-` for standard output, or the absolute path of a `.json` file.

    Raises:
        ArgumentTypeError: The text is neither. It may be the next argument.
    """
    if text == "-":
        return text
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither - nor a file that ends in .json")
    return str(Path(text).expanduser().absolute())


def count(text: str) -> int:
    """Return a count of at least 0.

    Raises:
        ArgumentTypeError: The text is none.
    """
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no count")
    return int(text)


def positive_count(text: str) -> int:
    """Return a count of at least 1.

    Raises:
        ArgumentTypeError: The text is none. It may be the next argument.
    """
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count of at least 1")
    return int(text)


def spelled(found: argparse.Namespace) -> list[str]:
    """Return a verb's command line that means the same in every working directory.

    Args:
        found: The parsed arguments, with the verb's parser in the attribute `parser`.

    Returns:
        The verb and all its arguments. Local paths are absolute, and options come before `--`.
    """
    options: list[str] = []
    positionals: list[str] = []
    for action in found.parser.arguments():
        value = getattr(found, action.dest)
        if value is None or value is False:
            continue
        texts = [
            str(Path(each).expanduser().absolute())
            if action.type in (local_path, Path) and "://" not in str(each)
            else str(each)
            for each in (value if isinstance(value, list) else [value])
        ]
        if not action.option_strings:
            positionals += texts
        elif action.nargs == 0:
            options.append(action.option_strings[-1])
        else:
            options += [f"{action.option_strings[-1]}={text}" for text in texts]
    return [found.verb, *options, "--", *positionals]


def _marked(given: Sequence[str]) -> list[str]:
    """Remove the first `--`, and mark each argument after it."""
    if "--" not in given:
        return list(given)
    end = given.index("--")
    return [*given[:end], *(_MARK + argument for argument in given[end + 1 :])]


def _unmarked(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix(_MARK)
    if isinstance(value, list):
        return [_unmarked(inner) for inner in value]
    return value
