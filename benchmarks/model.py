"""`perceiver bench model`: time our model and its peers, one step after the other."""

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.jobs import Answer, Ask, Job, Task, ask_until, ask_worker
from benchmarks.rows import Row, measure_rows, memory_rows
from benchmarks.variants import (
    OURS,
    PATHS,
    Compiled,
    Variant,
    as_transformers,
    choose_peers,
    resized,
    variants,
)
from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.config import FourierConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.presets import PRESETS, preset
from pipeline.errors import GateRefusedError, UserError
from pipeline.runs.console import Console

WORK: tuple[Task, ...] = ("train", "inference", "cross-attend", "memory")
DEFAULT_WORK: tuple[Task, ...] = ("train", "inference", "cross-attend")
DEFAULT_BATCH_SIZES = {"cpu": (1,), "cuda": (16, 32, 64, 128, 256)}
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bf16", "bf16_autocast", "fp8")
TOLERANCE = 1e-4
SECONDS = 2.0
QUICK_SECONDS, QUICK_STEP_SECONDS = 170.0, 0.5
QUICK_BATCH_SIZE = {"cpu": (1,), "cuda": (64,)}
QUICK_WORK: tuple[Task, ...] = ("train", "inference")
MEMORY_SIDES = tuple(round(10 ** (power / 4)) for power in (8, 9, 10, 11, 12))
"""The sides of square grids of 10⁴, 10⁴·⁵, … 10⁶ tokens, rounded."""


class DisagreementError(GateRefusedError):
    """Our model and a peer compute different functions, so nothing is compared. Exits with 1."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The checked options of a comparison.

    Attributes:
        name: The name of the preset.
        config: The configuration of the model. If transformers is a peer, our model computes the
            same function as transformers.
        peers: The names of peers from `PEERS`.
        device: The device on the command line, which may be `auto`.
        precision: The precision on the command line, which may be `auto`.
        batch_sizes: The batch sizes, ascending. None means the device's defaults.
        compile: Whether each variant is also measured with `torch.compile`.
        quick: Whether to measure a part within `QUICK_SECONDS`: one batch size, training and
            inference, short steps, and of compiled variants only our training step.
        paths: Whether each of our attention paths gets a row.
        checkpointed: The fractions of activation checkpointing that get a row each in `train`.
        work: The kinds of work, from `WORK`.
        rounds: The number of rounds, in each of which all are measured in turn. Figures are medians
            over rounds.
        seconds: The minimum time for which a step is repeated, in seconds.
        memory_sides: The sides of the square grids for the memory measurement.
    """

    name: str
    config: ClassifierConfig
    peers: tuple[str, ...]
    device: str = "auto"
    precision: str = "auto"
    batch_sizes: tuple[int, ...] | None = None
    compile: bool = True
    quick: bool = False
    paths: bool = False
    checkpointed: tuple[float, ...] = ()
    work: tuple[Task, ...] = DEFAULT_WORK
    rounds: int = 1
    seconds: float = SECONDS
    memory_sides: tuple[int, ...] = MEMORY_SIDES

    def compiled(self, work: Task) -> Compiled:
        """Return which variants are compiled for a kind of work."""
        if not self.compile or (self.quick and work != "train"):
            return "none"
        return "ours" if self.quick else "all"


def read_options(
    *,
    preset_name: str,
    vs: str | None,
    device: str,
    precision: str,
    batch_sizes: str | None,
    work: str | None,
    rounds: int,
    compile: bool,
    paths: bool,
    checkpointed: str | None = None,
    quick: bool = False,
) -> Options:
    """Turn the words on the command line into `Options`.

    Raises:
        UserError: If a word is unknown or does not fit another.
    """
    config = _image_preset(preset_name)
    peers = choose_peers(None if vs is None else _names(vs), config)
    if device not in DEVICES:
        raise UserError(f"--device {device}: must be one of {', '.join(DEVICES)}")
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: must be one of {', '.join(PRECISIONS)}")
    if quick:
        chosen_by_it = {
            "--work": work is not None, "--rounds": rounds != 1, "--paths": paths,
            "--checkpointed": checkpointed is not None,
        }  # fmt: skip
        for name, given in chosen_by_it.items():
            if given:
                raise UserError(f"--quick has its own choice for {name}; leave one of them out")
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: must be at least 1")
    default = QUICK_WORK if quick else DEFAULT_WORK
    chosen = default if work is None else _work(work)
    if "memory" in chosen and not _is_of_pixels(config):
        raise UserError(
            f"--work memory: needs a preset of pixels with Fourier features, not {preset_name}"
        )
    return Options(
        name=preset_name,
        config=as_transformers(config) if "transformers" in peers else config,
        peers=peers,
        device=device,
        precision=precision,
        batch_sizes=None if batch_sizes is None else _sizes(batch_sizes),
        compile=compile,
        paths=paths,
        checkpointed=() if checkpointed is None else _shares(checkpointed),
        work=chosen,
        rounds=rounds,
        seconds=QUICK_STEP_SECONDS if quick else SECONDS,
        quick=quick,
    )


def bench_model(options: Options, console: Console, ask: Ask | None = None) -> dict[str, Any]:
    """Measure everything.

    Args:
        options: The options.
        console: The console for progress notices.
        ask: A function that does one job; None does it in a process.

    Returns:
        `preset`, `config`, `machine`, `agreement` (the largest relative difference of each of our
        paths from transformers), `rows` (see `Row`), `memory`, and `failed`, the number of
        measurements that failed for another reason than memory.

    Raises:
        UserError: If the device does not exist.
        DisagreementError: If outputs differ that must be equal.
    """
    if ask is None:
        ask = ask_until(time.monotonic() + QUICK_SECONDS) if options.quick else ask_worker
    console.notice("measuring the machine")
    base = Job(
        task="machine",
        device=options.device,
        precision=options.precision,
        config=options.config.to_dict(),
        seconds=options.seconds,
    )
    machine = _ask(ask, base)
    base = dataclasses.replace(base, device=machine["device"], precision=machine["precision"])
    agreement = {}
    if "transformers" in options.peers:
        console.notice("comparing our logits with transformers'")
        agreement["transformers"] = _agreement(options, base, ask)
    defaults = QUICK_BATCH_SIZE if options.quick else DEFAULT_BATCH_SIZES
    sizes = options.batch_sizes or defaults[base.device]
    rows: list[Row] = []
    for work in options.work:
        if work != "memory":
            chosen = variants(
                options.peers,
                compile=options.compiled(work),
                paths=options.paths,
                checkpointed=options.checkpointed if work == "train" else (),
            )
            job = dataclasses.replace(base, task=work)
            rows += measure_rows(job, chosen, sizes, options.rounds, console, ask)
    memory = _memory(options, base, console, ask) if "memory" in options.work else []
    return {
        "preset": options.name,
        "config": options.config.to_dict(),
        "machine": machine,
        "agreement": agreement,
        "rows": [row.to_dict(rows, machine["matmul_flops_per_second"]) for row in rows],
        "memory": memory,
        "failed": sum(row.status == "failed" for row in rows)
        + sum(row["status"] == "failed" for row in memory),
    }


def _ask(ask: Ask, job: Job) -> Answer:
    """Return the answer to a job that the comparison cannot do without."""
    answer = ask(job)
    if answer["status"] == "refused":
        raise UserError(answer["message"])
    if answer["status"] == "out_of_time":
        raise UserError(
            f"--quick: {job.task} is not done after {QUICK_SECONDS:.0f} seconds; leave out --quick"
        )
    if answer["status"] != "ok":
        raise RuntimeError(f"{job.task}: {answer['status']}: {answer.get('error', '')}")
    return answer


def _agreement(options: Options, base: Job, ask: Ask) -> dict[str, float]:
    paths = ("auto", *PATHS) if options.paths else ("auto",)
    answer = _ask(ask, dataclasses.replace(base, task="agreement", paths=paths))
    errors: dict[str, float] = answer["errors"]
    worst = max(errors, key=lambda path: math.inf if math.isnan(errors[path]) else errors[path])
    if not errors[worst] <= TOLERANCE:
        label = Variant(implementation=OURS, path=worst).label
        raise DisagreementError(
            f"{label} and transformers disagree on {options.name} with the same weights: logits "
            f"differ by {errors[worst]:.1e} of the largest, allowed {TOLERANCE:.0e}; "
            "nothing is compared"
        )
    return errors


def _memory(options: Options, base: Job, console: Console, ask: Ask) -> list[dict[str, Any]]:
    chosen = [Variant(implementation=OURS, path=path) for path in reversed(PATHS[1:])]
    chosen += [Variant(implementation=peer) for peer in options.peers if peer == "transformers"]
    configs = [resized(options.config, side) for side in options.memory_sides]
    job = dataclasses.replace(base, task="memory")
    return memory_rows(job, chosen, configs, console, ask)


def _image_preset(name: str) -> ClassifierConfig:
    try:
        config = preset(name)
    except ValueError as error:
        raise UserError(f"--preset {name}: {error}") from None
    if not isinstance(config, ClassifierConfig) or not isinstance(config.input, ImageInput):
        images = ", ".join(
            known
            for known, other in PRESETS.items()
            if isinstance(getattr(other, "input", None), ImageInput)
        )
        raise UserError(f"--preset {name}: not a classifier of images; those are {images}")
    return config


def _is_of_pixels(config: ClassifierConfig) -> bool:
    adapter = config.adapter
    fourier = isinstance(config.positions, FourierConfig)
    return fourier and isinstance(adapter, PixelsConfig) and adapter.num_channels is None


def _names(text: str) -> tuple[str, ...]:
    """Split `a,b` into names, in order and without duplicates; `none` gives an empty tuple."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    return () if names == ("none",) else names


def _work(text: str) -> tuple[Task, ...]:
    for name in _names(text):
        if name not in WORK:
            raise UserError(f"--work {name}: must be one of {', '.join(WORK)}")
    return tuple(work for work in WORK if work in _names(text)) or _no_work()


def _no_work() -> tuple[Task, ...]:
    raise UserError(f"--work: names nothing; it may name {', '.join(WORK)}")


def _sizes(text: str) -> tuple[int, ...]:
    sizes = _names(text)
    if not sizes or not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(f"--batch-sizes {text}: must be integers of at least 1, such as 1,2,4")
    return tuple(sorted({int(size) for size in sizes}))


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(name) for name in _names(text))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise UserError(f"--checkpointed {text}: must be shares above 0 and at most 1: 0.25,1")
    return tuple(sorted(set(shares)))
