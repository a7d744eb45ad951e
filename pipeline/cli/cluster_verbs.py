"""The functions that run the verbs for clusters elsewhere. Each returns its exit status.

This module imports nothing heavy: each verb's module is imported when the verb runs.
"""

import argparse

from pipeline.cli.open_console import open_console

OK, FAILED = 0, 1


def run_cluster(args: argparse.Namespace) -> int:
    """Write the files of a kind of cluster, or print one of them."""
    import sys

    from pipeline.config.load import load_config
    from pipeline.deploy.render import render, write_files
    from pipeline.runs.strict_json import to_json

    config = load_config(args.config, args.overrides)
    files = render(args.target, config, args.job, only=args.only)
    if args.to is not None:
        write_files(files, args.to)
    written = [str(args.to / name) for name in files] if args.to is not None else []
    if args.json:
        print(to_json({"target": args.target, "written": written, "files": files}))
    elif written:
        print(f"wrote {', '.join(written)}")
    else:
        first, *others = files
        print(files[first], end="")
        if others:
            print(f"this is {first}; --to FOLDER writes {', '.join(others)} too", file=sys.stderr)
    return OK


def run_submit(args: argparse.Namespace) -> int:
    """Submit a verb as a Ray job. Return 1 if it failed or was stopped."""
    with open_console(args) as console:
        from pipeline.cli.submit import JobFiles, submit

        result = submit(
            args.command,
            console,
            parse=args.parse,
            address=args.address,
            wait=not args.detach,
            files=JobFiles(
                python=args.python,
                requirements=args.requirements,
                installer=args.installer,
                working_dir=args.working_dir,
                excludes=tuple(args.exclude),
            ),
        )
        console.result(result)
    return OK if result["status"] in ("SUCCEEDED", "PENDING", "RUNNING") else FAILED


def run_jobs(args: argparse.Namespace) -> int:
    """List the jobs of a cluster, or show one, its log, or stop it.

    Return 1 if the log of a failed or stopped job was followed.
    """
    with open_console(args) as console:
        from pipeline.cli.jobs import jobs

        result = jobs(args.action, args.job_id, console, address=args.address, follow=args.follow)
        console.result(result)
    return FAILED if args.follow and result["status"] != "SUCCEEDED" else OK
