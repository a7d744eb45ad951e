"""`python -m benchmarks.plan_memory [NAME …]`: planned memory beside that of real steps.

Each line is a shipped configuration on 1 or 2 CPU workers (gloo). Two real steps of DeepSpeed run
on zeros of the shapes of the data, once for each of three instruments that know nothing of each
other (`benchmarks.memory_peaks`). With names, only these configurations are measured.
"""

import gc
import os
import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.memory_peaks import INSTRUMENTS, MALLOC, Instrument
from cluster.deepspeed_engine import Strategy, initialize_engine
from perceiver_model.attention.cross_attend import CrossAttend
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.plan.plan import plan
from pipeline.plan.planned_set import PlannedSet, find_set, planned_objective
from pipeline.plan.request import Request
from pipeline.plan.step_trace import batch_loss, example_batch, give_draws
from pipeline.runs.console import Console
from pipeline.training.ema import WeightAverage
from pipeline.training.objectives import Objective
from pipeline.training.optimizer import make_optimizer
from pipeline.training.precision import compute_as, products_in

CLASSES = 10
CASES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("digits", 1, ("training.zero_stage=0",)),
    ("digits", 2, ("training.zero_stage=0",)),
    ("digits", 2, ("training.zero_stage=2",)),
    ("images", 2, ("training.batch_size=16",)),
    ("images", 2, ("training.zero_stage=0", "training.batch_size=16", "training.precision=bf16")),
    ("text", 2, ()),
    ("points", 2, ("training.zero_stage=0",)),
    ("points", 2, ("training.precision=bf16", "training.activation_checkpointing=0.5")),
    ("multi-label", 2, ()),
    ("autoencode", 2, ("training.batch_size=8",)),
    ("masked-language", 2, ("training.zero_stage=3", "training.batch_size=8")),
    ("autoregressive", 2, ("training.zero_stage=1", "training.batch_size=8")),
)


def main() -> None:
    """Print a row of a table for each case: the planned MiB, and those of each instrument."""
    os.environ |= MALLOC  # the processes inherit it
    print(f"| configuration | with | workers | planned | {' | '.join(INSTRUMENTS)} |")
    print(f"|{'---|' * (4 + len(INSTRUMENTS))}")
    for name, workers, overrides in CASES:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        planned = _planned(name, workers, overrides)
        found = [_measured(name, workers, overrides, each) for each in INSTRUMENTS]
        options = ", ".join(word.removeprefix("training.") for word in overrides)
        cells = [f"{peak / 2**20:.1f} ({planned / peak - 1:+.1%})" for peak in found]
        print(
            f"| `{name}` | {options} | {workers} | {planned / 2**20:.1f} | {' | '.join(cells)} |",
            flush=True,
        )


def _load(
    name: str, workers: int, overrides: tuple[str, ...]
) -> tuple[Config, PlannedSet, Objective]:
    own = (f"cluster.num_workers={workers}", "cluster.use_gpu=false", "cluster.address=null")
    config = load_config(name, [*overrides, *own, "study=null"])
    needs = config.data.target.kind in ("class", "multi_label", "mask")
    classes = None if config.data.target.classes or not needs else CLASSES
    config, planned = find_set(config, Console(), classes=classes, samples=None)
    return config, planned, planned_objective(config, planned)


def _planned(name: str, workers: int, overrides: tuple[str, ...]) -> int:
    config, planned, _ = _load(name, workers, overrides)
    result = plan(config, Console(), Request(gpu="cpu", classes=planned.num_classes or None))
    stage = result["memory"]["stages"][config.zero_stage]
    return int(stage["peak"] - stage["overhead"])


def _measured(name: str, workers: int, overrides: tuple[str, ...], instrument: str) -> int:
    """Return the peak of rank 0 in two steps, in bytes, as an instrument finds it."""
    context = mp.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_work,
                args=(rank, workers, f"{folder}/store", answers, name, overrides, instrument),
            )
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        try:
            return int(answers.get(timeout=600))
        finally:
            for process in processes:
                process.join(60)
                process.kill()


def _work(
    rank: int,
    workers: int,
    store: str,
    answers: Any,
    name: str,
    overrides: tuple[str, ...],
    instrument: str,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(workers)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    config, planned, objective = _load(name, workers, overrides)
    # A tiny training loads the libraries, whose memory is not that of the training.
    training = config.training
    tiny = (f"training.zero_stage={config.zero_stage}", "training.batch_size=8",
            f"training.precision={training.precision}")  # fmt: skip
    for each in (_load("digits", workers, tiny), (config, planned, objective)):
        gc.collect()
        with INSTRUMENTS[instrument]() as found:
            _steps(*each, workers, found)
    if rank == 0:
        answers.put(found.peak)
    dist.barrier()
    dist.destroy_process_group()


def _steps(
    config: Config, planned: PlannedSet, objective: Objective, workers: int, found: Instrument
) -> None:
    """Build an engine, and measure two steps of it."""
    training = config.training
    strategy = Strategy(
        world_size=workers,
        zero_stage=config.zero_stage,
        micro_batch_size=config.micro_batch_size(workers),
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_clipping=training.gradient_clipping or 0.0,
        precision=products_in(training.precision),
        device="cpu",
        optimizer=training.optimizer,
    )
    size = strategy.micro_batch_size * training.augment.views
    model: Any = objective.build_model()
    found.know([*model.parameters(), *model.buffers()])
    compute_as(model, training.precision, training.attention_path)
    if hasattr(model, "encoder"):
        model.encoder.checkpointed_share = training.activation_checkpointing
    optimizer = make_optimizer(model, training)
    engine = initialize_engine(model, optimizer, strategy, gathered_whole=[CrossAttend])
    engine.train()
    average = None
    if training.ema_decay is not None:
        average = WeightAverage(engine, training.ema_decay)
    gc.collect()
    with found.measured():
        for _ in range(2 * training.gradient_accumulation_steps):
            batch = example_batch(config, objective, size, planned.num_classes)
            give_draws(model, size)
            engine.backward(batch_loss(engine, objective, config, [batch]))
            engine.step()
            if average is not None and engine.is_gradient_accumulation_boundary():
                average.update()


if __name__ == "__main__":
    main()
