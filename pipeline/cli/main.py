"""The entry point of the command line: runs one verb, reports errors, returns the exit status.

It imports nothing heavy: each verb's module is imported when the verb runs.
"""

import argparse
import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from cluster.interrupts import Terminated, sigterm_raises
from pipeline.cli.parser import parse
from pipeline.cli.verbs import FAILED

BAD_INPUT, INTERRUPTED = 2, 130
LIGHT = ("cluster", "config", "inspect", "verify")
"""The verbs that start no engine."""

NO_WORKING_DIRECTORY = (
    "the working directory of this command has been removed, which may be the cause of what "
    "follows; if this is a Ray job, several raylets of one machine share a temporary folder, and "
    "one of them removed it: start each with a --temp-dir of its own"
)


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The arguments. None takes the arguments of the process. Then the verbs that start
            engines run in a child process (`pipeline.runs.watcher`).

    Returns:
        The exit status. 0: the work is done. 1: it could not be done, or this program has a defect.
        2: the input is wrong; one line says what is wrong and how to mend it. 129, 130 and 143: the
        verb was ended by SIGHUP, SIGINT (Ctrl-C) or SIGTERM. 141: nobody reads its output any more,
        as after `head`. 128 + n: it was killed by signal n, or
        crashed.
    """
    args = parse(argv)
    if argv is None and args.verb not in LIGHT:
        from pipeline.runs.watcher import watched

        return watched(args.verb, lambda: _run(args))
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    verb: Callable[[argparse.Namespace], int] = args.run
    try:
        with sigterm_raises():
            status = verb(args)
        sys.stdout.flush()
        return status
    except Terminated as end:
        with contextlib.suppress(OSError):  # the terminal itself may be gone
            done = f": {end.done}" if end.done else ""
            print(f"perceiver {args.verb}: terminated ({end.name}){done}", file=sys.stderr)
        return 128 + end.number
    except KeyboardInterrupt:
        print(f"perceiver {args.verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        return 128 + signal.SIGPIPE if _reader_has_gone() else _explain(error, args)
    except Exception as error:
        return _explain(error, args)


def _reader_has_gone() -> bool:
    """Return whether standard output leads to a pipe that nobody reads any more, as after `head`.

    Then what is left goes nowhere.
    """
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    has_gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if has_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return has_gone


def _explain(error: Exception, args: argparse.Namespace) -> int:
    from pipeline.errors import GateRefusedError
    from pipeline.runs.user_errors import find_user_error
    from shards.plain import printable
    from shards.redaction import redacted

    if args.debug:
        print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    if not _has_working_directory():
        print(f"perceiver {args.verb}: {NO_WORKING_DIRECTORY}", file=sys.stderr)
    expected = find_user_error(error)
    if expected is None:
        hint = "" if args.debug else "; --debug shows the traceback"
        text = printable(redacted(_foreign(error)))
        print(f"perceiver {args.verb}: {text}{hint}", file=sys.stderr)
        return FAILED
    for line in redacted(str(expected)).splitlines():
        print(f"perceiver {args.verb}: {printable(line)}", file=sys.stderr)
    return FAILED if isinstance(expected, GateRefusedError) else BAD_INPUT


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _foreign(error: Exception) -> str:
    """Describe in one line an error that is not ours: of the machine or a server, or a defect."""
    from cluster.ray_failures import read_failure, root_error
    from shards.redaction import shortened

    if failure := read_failure(error):
        return failure.text
    root = root_error(error)
    text = shortened(str(root), 300)
    if type(root).__module__.startswith("mlflow"):
        return f"MLflow does not answer, or refuses what it is asked ({text})"
    return f"unexpected {type(root).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
