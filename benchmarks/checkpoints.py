"""`perceiver bench checkpoints`: what saving costs a training, in time and memory."""

import dataclasses
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.machine import describe, memory, reset_peak
from cluster.deepspeed_engine import initialize_engine
from cluster.divided_model import divided_as_built
from cluster.strategy import Strategy
from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import MLP, Attend
from perceiver_model.config import EncoderConfig, FourierConfig
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.config.training import TrainingConfig
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.training.agreement import agreed_checkpoint
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.optimizer import make_optimizer
from pipeline.training.rank_info import RankInfo
from pipeline.training.saved_state import own_state, restore_training

CHANNELS = 1024
"""The width of the latents of a large model."""
SIDE = 32


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        num_parameters: The least number of parameters of the model.
        num_workers: The number of processes.
        zero_stage: The ZeRO stage.
        num_steps: The number of steps between two saves.
        rounds: How often as many steps are taken without a save, and then with one.
        batch_size: The batch size of a process.
        folder: The folder for the checkpoints.
    """

    num_parameters: int
    num_workers: int
    zero_stage: int
    num_steps: int
    rounds: int
    batch_size: int
    folder: str


def bench_checkpoints(console: Console, options: Options) -> dict[str, Any]:
    """Train a Perceiver with and without saves in turn, then resume it.

    A window is `num_steps` steps. Windows without a save and with one at their beginning alternate,
    so that a change of the machine's speed reaches both. Saves are those of `perceiver train`.

    Args:
        console: The console for progress notices.
        options: What is measured. An empty `folder` means a temporary one.

    Returns:
        `parameters`, `workers`, `zero_stage`, `steps`, `machine`, and medians over the rounds:
        `window_seconds` and `saved_window_seconds` (without a save and with one), `share` (of the
        time that a save costs: the difference, divided by the second), `wait_seconds` (the training
        stands still), `commit_seconds` (from the begin of a save until it is committed) and
        `resume_seconds` (from the choice of the checkpoint). `part_bytes` and `peak_bytes` are of
        the rank with the most: its part, and by how much the peak of its process in the first
        window with a save exceeds that in the window before it.

    Raises:
        UserError: A number is too small.
    """
    numbers = (options.num_parameters, options.num_workers, options.num_steps, options.rounds)
    if min(numbers) < 1 or options.zero_stage not in range(4):
        raise UserError(
            "--parameters, --workers, --steps and --rounds must be at least 1, and --zero-stage "
            "0, 1, 2 or 3"
        )
    with tempfile.TemporaryDirectory(prefix="perceiver-bench-", dir=options.folder or None) as name:
        options = dataclasses.replace(options, folder=name)
        console.notice(
            f"{options.rounds} rounds of {options.num_steps} steps without a save and with one, on "
            f"{options.num_workers} workers"
        )
        count = options.num_workers
        mp.start_processes(_worker, (options,), nprocs=count, start_method="spawn")
        found = [torch.load(Path(name) / f"{rank}.pt") for rank in range(options.num_workers)]
    first = found[0]
    plain, saved = (statistics.median(first[key]) for key in ("plain", "saved"))
    return {
        "parameters": first["parameters"],
        "workers": options.num_workers,
        "zero_stage": options.zero_stage,
        "steps": options.num_steps,
        "machine": describe("auto", "auto", 1.0),
        "window_seconds": plain,
        "saved_window_seconds": saved,
        "share": (saved - plain) / saved,
        "wait_seconds": statistics.median(first["wait"]),
        "commit_seconds": statistics.median(first["commit"]),
        "resume_seconds": max(each["resume"] for each in found),
        "part_bytes": max(each["part"] for each in found),
        "peak_bytes": max(each["peak"][0] for each in found),
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `bench_checkpoints` on the console."""
    console.say(
        f"{result['parameters']:,} parameters, {result['workers']} workers, ZeRO stage "
        f"{result['zero_stage']}: a save every {result['steps']} steps costs "
        f"{result['share']:.1%} of the time ({result['window_seconds']:.2f} s without, "
        f"{result['saved_window_seconds']:.2f} s with one)"
    )
    console.say(
        f"the training waits {result['wait_seconds']:.2f} s, the checkpoint is committed after "
        f"{result['commit_seconds']:.2f} s, resuming takes {result['resume_seconds']:.2f} s"
    )
    console.say(
        f"the part of a rank is {result['part_bytes'] / 1e9:.3f} GB; saving takes "
        f"{result['peak_bytes'] / 1e9:.3f} GB of memory more than training"
    )


def _config(num_parameters: int) -> ClassifierConfig:
    """Return a classifier with at least so many parameters."""

    def of(layers: int) -> ClassifierConfig:
        channels = CHANNELS if num_parameters > 20_000_000 else CHANNELS // 8
        return ClassifierConfig(
            input=ImageInput(height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.2,) * 3),
            adapter=PixelsConfig(),
            positions=FourierConfig(num_bands=16, max_resolution=(SIDE, SIDE)),
            encoder=EncoderConfig(
                num_latents=16, latent_dim=channels, num_blocks=1, num_cross_attends=1,
                num_self_attends=layers,
            ),
            num_classes=10,
        )  # fmt: skip

    def size(layers: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in PerceiverClassifier(of(layers)).parameters())

    one, two = size(1), size(2)
    return of(1 + max(0, -((one - num_parameters) // (two - one))))


def _worker(rank: int, options: Options) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(options.num_workers))
    use_cuda = torch.cuda.is_available()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.num_workers))
    store = dist.FileStore(f"{options.folder}/store", options.num_workers)
    dist.init_process_group(
        "nccl" if use_cuda else "gloo", store=store, rank=rank, world_size=options.num_workers
    )
    device = torch.device("cuda", rank) if use_cuda else torch.device("cpu")
    rank_info = RankInfo(rank, rank, 0, options.num_workers, device)
    folder = Path(options.folder) / "checkpoints"
    engine = _engine(options, rank_info)
    saver = CheckpointSaver(folder, rank_info)
    _window(engine, rank_info, 2, options.batch_size)
    found: dict[str, Any] = {"plain": [], "saved": [], "wait": [], "commit": [], "peak": []}
    for step in range(options.rounds):
        reset_peak("cpu")
        found["plain"].append(_window(engine, rank_info, options.num_steps, options.batch_size))
        plain = memory("cpu").peak
        reset_peak("cpu")
        began = time.perf_counter()
        saver.save(TrainState(step=step), own_state(engine, None, None, rank_info))
        found["wait"].append(time.perf_counter() - began)
        took = _window(engine, rank_info, options.num_steps, options.batch_size)
        found["saved"].append(found["wait"][-1] + took)
        saver.wait(is_required=True)
        found["commit"].append(saver.seconds)
        found["peak"].append(memory("cpu").peak - plain)
    found["part"] = saver.part_bytes
    found["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    saver.close()
    del engine
    again = _engine(options, rank_info)
    dist.barrier()
    began = time.perf_counter()
    chosen, _ = agreed_checkpoint(folder)
    assert chosen is not None
    restore_training(again, chosen, None)
    found["resume"] = time.perf_counter() - began
    torch.save(found, f"{options.folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _engine(options: Options, rank_info: RankInfo) -> Any:
    strategy = Strategy(
        world_size=rank_info.world_size,
        zero_stage=options.zero_stage,
        micro_batch_size=options.batch_size,
        gradient_accumulation_steps=1,
        gradient_clipping=1.0,
        precision="float32",
        device=rank_info.device.type,
    )
    config = _config(options.num_parameters)
    torch.manual_seed(0)
    with divided_as_built(strategy, options.num_parameters, [Attend, MLP]):
        model = PerceiverClassifier(config)
    model = model.to(rank_info.device)
    optimizer = make_optimizer(model, TrainingConfig(learning_rate=1e-4))
    return initialize_engine(model, optimizer, strategy, gathered_whole=[CrossAttend])


def _window(engine: Any, rank_info: RankInfo, num_steps: int, batch_size: int) -> float:
    """Train for some steps. Return the seconds that they took."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(rank_info.rank)
    for _ in range(num_steps):
        images = torch.rand(batch_size, SIDE, SIDE, 3, generator=generator)
        labels = torch.randint(0, 10, (batch_size,), generator=generator)
        logits = engine(images.to(rank_info.device))
        loss = torch.nn.functional.cross_entropy(logits.float(), labels.to(rank_info.device))
        engine.backward(loss)
        engine.step()
    if rank_info.device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
    return time.perf_counter() - began
