"""`perceiver bench train`: a training's step beside a bare torch loop and Lightning."""

import contextlib
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import DTYPES, describe
from benchmarks.train_loops import BARE, LIGHTNING, OURS, BenchTask, Seconds, measure
from cluster.ray_session import ray_session
from perceiver_model.fourier import position_table
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.media import ImageFormat, encode_members
from pipeline.preprocess.identity import needed_positions, set_identity
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.outbox import RunRef
from pipeline.training.launch import fit_workers
from pipeline.training.worker import TrainTask
from shards import Sample, publish, write_position_table, write_shard

MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("digits", ()),
    "5m": (
        "images",
        (
            "model.adapter={kind: pixels}",
            "model.positions={num_bands: 16}",
            "model.encoder={num_latents: 64, latent_dim: 320, num_blocks: 1, num_cross_attends: 1, "
            "num_self_attends: 9, num_cross_heads: 1, num_self_heads: 8, self_widening: 1, "
            "share_self_attends: false}",
        ),
    ),
    "imagenet": ("perceiver-io-imagenet", ("data.image.encoding=raw",)),
}
"""The shipped configuration and the changes to it that make each model."""
CONFIDENCE = 0.95
NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """The checked options of a comparison.

    Attributes:
        model: One of `MODELS`.
        batch_size: The samples of a step, over all workers.
        steps: The steps of a round.
        rounds: The number of rounds, in each of which all are timed in turn.
        workers: The workers of Ray Train; 0 trains in this process.
        stage: The ZeRO stage of ours, `0` to `3`, or `auto`.
        device: `cpu`, `cuda` or `auto`.
        precision: `float32`, `bf16`, `bf16_autocast`, `fp8` or `auto`.
        lightning: Whether Lightning is timed, too.
    """

    model: str = "5m"
    batch_size: int = 16
    steps: int = 10
    rounds: int = 15
    workers: int = 1
    stage: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    lightning: bool = True

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UserError(f"--model {self.model}: is none of {', '.join(MODELS)}")
        if min(self.batch_size, self.steps, self.rounds) < 1 or self.workers < 0:
            raise UserError("--batch-size, --steps, --rounds: must be at least 1; --workers 0")
        if self.stage not in ("auto", "0", "1", "2", "3"):
            raise UserError(f"--stage {self.stage}: must be auto, 0, 1, 2 or 3")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {self.device}: must be auto, cpu or cuda")
        if self.precision not in ("auto", *DTYPES):
            raise UserError(f"--precision {self.precision}: must be auto or {', '.join(DTYPES)}")


def bench_train(options: Options, console: Console) -> dict[str, Any]:
    """Time the steps of all contestants in turn, in the workers of one launch of Ray Train.

    Args:
        options: The options.
        console: The console for notices.

    Returns:
        `machine`, `model`, `parameters`, the options, and `rows`: each with its `label`,
        `ms_per_step` (median), the median `vs_bare` of the ratios of the rounds' times, and the
        `interval` of that median.

    Raises:
        UserError: An option does not fit this machine.
    """
    machine = describe(options.device, options.precision, seconds=0.2)
    contestants = [OURS, BARE]
    if options.lightning and options.workers <= 1:
        if find_spec("lightning") is None:
            raise UserError(
                "Lightning is not installed: pip install 'perceiver-pipeline[bench]', or give "
                "--no-lightning"
            )
        contestants.append(LIGHTNING)
    with tempfile.TemporaryDirectory(prefix="perceiver-bench-") as name:
        config = config_of(options, machine["device"], machine["precision"], Path(name))
        console.notice(f"making {options.steps * options.batch_size} pictures in shards")
        write_pictures(config, options.steps * options.batch_size)
        answer = _measured(config, tuple(contestants), options.rounds)
    shown = {
        field: getattr(options, field) for field in ("batch_size", "steps", "rounds", "workers")
    }
    return {
        "machine": machine,
        "model": options.model,
        "parameters": answer["parameters"],
        "threads": answer["threads"],
        **shown,
        "stage": config.zero_stage,
        "rows": rows_of(answer["seconds"], answer["steps"]),
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `bench_train` on the console."""
    machine = result["machine"]
    console.say(
        f"{machine['device_name']} ({machine['device']}, {machine['cpus']} CPUs), "
        f"{machine['precision']}; model {result['model']} with "
        f"{result['parameters'] / 1e6:.3g} M parameters, batch {result['batch_size']}, "
        f"{result['workers']} workers, ZeRO stage {result['stage']}"
    )
    rows = [
        (row["label"], f"{row['ms_per_step']:.2f}", f"{row['vs_bare']:.3f}",
         "{:.3f} to {:.3f}".format(*row["interval"]))
        for row in result["rows"]
    ]  # fmt: skip
    columns = ("", "ms/step", "× bare torch", "95 % interval")
    title = f"a training step, {result['rounds']} rounds of {result['steps']} steps in turn"
    console.table(title, columns, rows)
    console.say(
        "- All read, copy and decode the same batches. Ours runs through Ray Train and DeepSpeed, "
        "and logs to MLflow, whose delivery counts; the others write the loss to a local file."
    )
    console.say(
        "- × bare torch: the median over rounds of the ratio of times within a round; the interval "
        "is that of the median."
    )


def rows_of(seconds: Seconds, steps: int) -> list[dict[str, Any]]:
    """Return the rows of the table.

    Args:
        seconds: The seconds of each round, by contestant.
        steps: The steps of a round.
    """
    rows = []
    for label, found in seconds.items():
        ratios = [own / bare for own, bare in zip(found, seconds[BARE], strict=True)]
        rows.append(
            {
                "label": label,
                "ms_per_step": 1000 * statistics.median(found) / steps,
                "vs_bare": statistics.median(ratios),
                "interval": interval_of_median(ratios),
                "seconds": found,
            }
        )
    return rows


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Return the values between which the median lies with 95 % confidence, whatever their law.

    These are two of the values by rank. The number of values below the median is binomial. With
    fewer than 6 values, they are the smallest and the largest, with less confidence.
    """
    count, tail, rank = len(values), 0.0, 0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if 2 * tail > 1 - CONFIDENCE:
            break
        rank += 1
    rank = max(0, rank - 1)
    ordered = sorted(values)
    return ordered[rank], ordered[-1 - rank]


def config_of(options: Options, device: str, precision: str, folder: Path) -> Config:
    """Return the configuration of the training that is timed, without augmentation."""
    shipped, changes = MODELS[options.model]
    return load_config(
        shipped,
        [
            *changes,
            f"output={folder / 'runs'}",
            "data.validation=null",
            "training.augment={}",
            "training.ema_decay=null",
            "training.gradient_accumulation_steps=1",
            "training.checkpoint_steps=null",
            "training.loader_workers=0",
            "training.epochs=1000",
            f"training.batch_size={options.batch_size}",
            f"training.zero_stage={options.stage}",
            f"training.precision={precision}",
            f"cluster.num_workers={options.workers}",
            "cluster.cpus_per_worker=1",
            f"cluster.use_gpu={'true' if device == 'cuda' and options.workers else 'false'}",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        ],
    )


def write_pictures(config: Config, count: int) -> None:
    """Write the shard set of a configuration: pictures of random pixels in 10 classes."""
    (fmt,) = config.data.formats.values()
    assert isinstance(fmt, ImageFormat)
    random = np.random.default_rng(0)
    shape = (fmt.height, fmt.width, fmt.channels)
    samples = (
        Sample(
            f"{number:08d}",
            encode_members(random.integers(0, 256, shape, np.uint8), fmt),
            number % NUM_CLASSES,
            f"{number}.png",
            "0" * 64,
        )
        for number in range(count)
    )
    staging = Path(config.shards_folder).with_name("staging")
    write_shard(staging, 0, "train", samples)
    specs = needed_positions(config)
    for spec in specs:
        table = position_table(spec.shape, spec.num_bands, spec.max_resolution)
        write_position_table(staging, spec, np.asarray(table))
    publish(
        staging, Path(config.shards_folder), numbers=range(1), config=set_identity(config),
        input_digest="0" * 64, classes=tuple(map(str, range(NUM_CLASSES))), positions=specs,
    )  # fmt: skip


def _measured(config: Config, contestants: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Launch the workers, and return what rank 0 has measured."""
    folder = Path(str(config.folder)) / "train"
    folder.mkdir(parents=True)
    uri = config.tracking_uri
    mlflow_client = client(uri)
    run = mlflow_client.create_run(mlflow_client.create_experiment(config.name))
    ref = RunRef(uri, run.info.run_id, str(folder.parent / "outbox"))
    train = TrainTask(config.model_dump_json(), str(folder), ref)
    answer = folder / "answer.json"
    task = BenchTask(train, rounds, contestants, str(answer))
    with contextlib.ExitStack() as stack:
        if config.cluster.min_workers:
            stack.enter_context(ray_session(config.cluster.address))
        fit_workers(config.cluster, measure, task, folder)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found
