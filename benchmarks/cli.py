"""The options of `perceiver bench SUBJECT`, and the functions that run the subjects."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.runs.console import Console

OpenConsole = Callable[[argparse.Namespace], AbstractContextManager["Console"]]
"""A function that opens the console for the parsed arguments."""
FAILED, OK = 1, 0


def add_subjects(bench: argparse.ArgumentParser, open_console: OpenConsole) -> None:
    """Add the subjects to the parser of the verb.

    Args:
        bench: The parser of the verb.
        open_console: Opens the console that a verb without a configuration writes to.
    """
    subjects = bench.add_subparsers(dest="subject", required=True, metavar="SUBJECT")

    def add(name: str, run: Callable[..., int], help_text: str) -> argparse.ArgumentParser:
        subject = subjects.add_parser(name, help=help_text, description=help_text)
        subject.set_defaults(run=lambda args: run(args, open_console))
        for flag in ("--json", "--debug"):  # The verb's flags also work after the subject.
            subject.add_argument(
                flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )
        return subject

    _add_model(add("model", _model, "compare training, inference and memory with other Perceivers"))
    _add_train(add("train", _train, "compare a training's step with a bare torch loop's"))
    _add_shards(add("shards", _shards, "compare our shard reader with those of peers"))
    preprocess = add(
        "preprocess", _preprocess, "compare making shards of JPEG files with a process pool"
    )
    preprocess.add_argument("--files", type=int, default=16_000, help="photographs")
    preprocess.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    preprocess.add_argument(
        "--rounds", type=int, default=3, help="rounds; each measures all in turn"
    )

    _add_checkpoints(add("checkpoints", _checkpoints, "measure what saving costs a training"))


def _add_shards(subject: argparse.ArgumentParser) -> None:
    subject.add_argument(
        "--samples", type=int, help="photographs in the set (default: 10000; 4000 with --remote)"
    )
    subject.add_argument(
        "--decoded", type=int, help="photographs that a round decodes (default: 2000)"
    )
    subject.add_argument("--rounds", type=int, default=3, help="rounds; each measures all in turn")
    subject.add_argument(
        "--peers-python", metavar="PYTHON", help="the Python that has the peers (default: this one)"
    )
    kind = subject.add_mutually_exclusive_group()
    kind.add_argument(
        "--first-batch",
        action="store_true",
        help="instead, the time to the first batch of sets of 1, 10 and 100 shards",
    )
    kind.add_argument(
        "--remote", action="store_true", help="read from an S3 server on the loopback"
    )
    subject.add_argument(
        "--latency",
        type=float,
        help="with --remote: milliseconds added to each request (default: 30)",
    )
    subject.add_argument(
        "--link",
        type=float,
        help="with --remote: megabytes per second of the link; 0: no limit (default: 100)",
    )


def _add_checkpoints(subject: argparse.ArgumentParser) -> None:
    subject.add_argument("--parameters", type=float, default=1e6, help="parameters of the model")
    subject.add_argument("--workers", type=int, default=2, help="processes")
    subject.add_argument("--zero-stage", type=int, default=2, help="0, 1, 2 or 3")
    subject.add_argument("--steps", type=int, default=50, help="steps between two saves")
    subject.add_argument("--rounds", type=int, default=3, help="pairs of windows")
    subject.add_argument("--batch-size", type=int, default=8, help="samples in a step of a worker")
    subject.add_argument("--folder", default="", help="where checkpoints go (default: temporary)")


def _add_model(subject: argparse.ArgumentParser) -> None:
    subject.add_argument("--preset", default="io-imagenet-fourier", help="a published model")
    subject.add_argument(
        "--vs",
        metavar="PEERS",
        help="transformers,lucidrains, or none (default: peers with such a model)",
    )
    subject.add_argument("--device", default="auto", help="cpu or cuda")
    subject.add_argument("--precision", default="auto", help="float32, bf16, bf16_autocast or fp8")
    subject.add_argument(
        "--batch-sizes", metavar="N,…", help="tried in ascending order while the rate grows"
    )
    subject.add_argument(
        "--work", metavar="WORK", help="train,inference,cross-attend (default) and memory"
    )
    subject.add_argument("--rounds", type=int, default=1, help="rounds; each measures all in turn")
    subject.add_argument(
        "--no-compile", action="store_true", help="measure only without torch.compile"
    )
    subject.add_argument(
        "--quick",
        action="store_true",
        help="within 3 minutes: one batch size, training and inference, only our step compiled",
    )
    subject.add_argument(
        "--paths", action="store_true", help="a row for each path of our attention"
    )
    subject.add_argument(
        "--checkpointed", metavar="SHARE,…", help="a row for each share of activation checkpointing"
    )


def _add_train(subject: argparse.ArgumentParser) -> None:
    subject.add_argument("--model", default="5m", help="digits (54 k), 5m, or imagenet (48 M)")
    subject.add_argument("--batch-size", type=int, default=16, help="samples in a step")
    subject.add_argument("--steps", type=int, default=10, help="steps in a round")
    subject.add_argument("--rounds", type=int, default=15, help="rounds; each times all in turn")
    subject.add_argument("--workers", type=int, default=1, help="workers of Ray Train; 0: none")
    subject.add_argument("--stage", default="auto", help="the ZeRO stage")
    subject.add_argument("--device", default="auto", help="cpu or cuda")
    subject.add_argument("--precision", default="auto", help="float32, bf16, bf16_autocast or fp8")
    subject.add_argument("--no-lightning", action="store_true", help="time only ours and torch's")


def _train(args: argparse.Namespace, open_console: OpenConsole) -> int:
    with open_console(args) as console:
        from benchmarks.train import Options, bench_train, report

        options = Options(
            model=args.model, batch_size=args.batch_size, steps=args.steps, rounds=args.rounds,
            workers=args.workers, stage=args.stage, device=args.device, precision=args.precision,
            lightning=not args.no_lightning,
        )  # fmt: skip
        _tell(bench_train(options, console), report, console)
    return OK


def _model(args: argparse.Namespace, open_console: OpenConsole) -> int:
    with open_console(args) as console:
        from benchmarks.model import bench_model, read_options
        from benchmarks.report import report

        options = read_options(
            preset_name=args.preset, vs=args.vs, device=args.device, precision=args.precision,
            batch_sizes=args.batch_sizes, work=args.work, rounds=args.rounds,
            compile=not args.no_compile, paths=args.paths, checkpointed=args.checkpointed,
            quick=args.quick,
        )  # fmt: skip
        result = bench_model(options, console)
        _tell(result, report, console)
    return FAILED if result["failed"] else OK


def _shards(args: argparse.Namespace, open_console: OpenConsole) -> int:
    with open_console(args) as console:
        _check_shards(args)
        if args.first_batch:
            from benchmarks.first_batch import bench_first_batch
            from benchmarks.first_batch import report as report_first

            result = bench_first_batch(console, rounds=args.rounds, peers_python=args.peers_python)
            _tell(result, report_first, console)
            return OK
        if args.remote:
            from benchmarks.remote_shards import bench_remote_shards
            from benchmarks.remote_shards import report as report_remote

            result = bench_remote_shards(
                console, num_samples=_given(args.samples, 4_000), rounds=args.rounds,
                latency=_given(args.latency, 30.0) / 1000, link=_given(args.link, 100.0),
                peers_python=args.peers_python,
            )  # fmt: skip
            _tell(result, report_remote, console)
            return OK
        from benchmarks.shards import bench_shards, report

        result = bench_shards(
            console, num_samples=_given(args.samples, 10_000),
            num_decoded=_given(args.decoded, 2_000), rounds=args.rounds,
            peers_python=args.peers_python,
        )  # fmt: skip
        _tell(result, report, console)
    return OK


def _check_shards(args: argparse.Namespace) -> None:
    """Refuse an option that what is measured does not have."""
    of_a_link = ("latency", "link")
    others: tuple[str, ...]
    if args.first_batch:
        measured, others = "--first-batch", ("samples", "decoded", *of_a_link)
    elif args.remote:
        measured, others = "--remote", ("decoded",)
    else:
        measured, others = "reading from a disk", of_a_link
    for name in others:
        if getattr(args, name) is not None:
            raise UserError(f"--{name} changes nothing about {measured}; leave it out")


def _given(value: Any, default: Any) -> Any:
    """Return an option's value, or its default if it was not given."""
    return default if value is None else value


def _preprocess(args: argparse.Namespace, open_console: OpenConsole) -> int:
    with open_console(args) as console:
        from benchmarks.preprocess import bench_preprocess, report

        result = bench_preprocess(
            console, num_files=args.files, num_workers=args.workers, rounds=args.rounds
        )
        _tell(result, report, console)
    return OK


def _checkpoints(args: argparse.Namespace, open_console: OpenConsole) -> int:
    with open_console(args) as console:
        from benchmarks.checkpoints import Options, bench_checkpoints, report

        options = Options(
            num_parameters=round(args.parameters), num_workers=args.workers,
            zero_stage=args.zero_stage, num_steps=args.steps, rounds=args.rounds,
            batch_size=args.batch_size, folder=args.folder,
        )  # fmt: skip
        _tell(bench_checkpoints(console, options), report, console)
    return OK


def _tell(
    result: dict[str, Any], report: Callable[[dict[str, Any], "Console"], None], console: "Console"
) -> None:
    """Show the result as a report, and pass it on as the verb's result."""
    report(result, console)
    console.result(result)
