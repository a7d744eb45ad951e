"""One process of an evaluation: what Ray Train runs on every worker."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from cluster.strategy import AUTOCAST_DTYPES
from pipeline.config.folders import folder_at
from pipeline.errors import UserError
from pipeline.evaluation.class_numbers import Renumbering
from pipeline.evaluation.described import as_json, described
from pipeline.evaluation.worst import WorstSamples
from pipeline.registry.reading import Reading
from pipeline.runs.storage import local_copy, write_bytes
from pipeline.runs.strict_json import to_json
from pipeline.training.agreement import check_same_folder, check_same_shards, every_rank
from pipeline.training.bad_samples import BadSamples
from pipeline.training.checkpoint_files import load_weights, read_tensors
from pipeline.training.evaluation import Metrics, RecordingMetrics, answered
from pipeline.training.objectives import Objective
from pipeline.training.precision import compute_as, products_in
from pipeline.training.rank_info import RankInfo, join
from pipeline.training.reports.details import details_of, joined_details
from shards import RemoteReading, ShardReader, ShardSet
from shards.location import Location

WEIGHTS_FILE, RESULT_FILE = "model.safetensors", "result.json"


@dataclass(frozen=True)
class EvaluationTask:
    """What the driver gives to every worker.

    Attributes:
        objective: What the model is trained for.
        reading: How the model reads the set.
        is_stream: Whether the model reads recordings as streams.
        renumbering: How the set's numbers of classes become those of the model.
        location: Where the set lies.
        remote: How the workers read the set if it is not local.
        split: A split of the set.
        folder: A folder on storage that all workers share. It holds the weights, and gets the
            result.
        token: The token from `folder_token`. Workers look for it in the folder.
        batch_size: The samples that one worker takes in one forward pass.
        loader_workers: The processes of each worker that make batches.
        precision: As `training.precision`.
        attention_path: As `training.attention_path`.
        max_bad_fraction: The largest share of the samples that may be unreadable.
        worst: The number of worst samples to report.
    """

    objective: Objective
    reading: Reading
    is_stream: bool
    renumbering: Renumbering
    location: Location
    remote: RemoteReading
    split: str
    folder: str
    token: str
    batch_size: int
    loader_workers: int
    precision: str
    attention_path: Any
    max_bad_fraction: float
    worst: int


def evaluate_worker(task: EvaluationTask) -> None:
    """Evaluate this worker's share of the split. Rank 0 writes the result to `RESULT_FILE`."""
    alone = not dist.is_initialized()
    rank_info, folder = join(), folder_at(task.folder)
    try:
        check_same_folder(folder, task.token)
        result = evaluate_on_rank(task, rank_info)
        if rank_info.rank == 0:
            write_bytes(folder / RESULT_FILE, to_json(result).encode())
        dist.barrier()
    finally:
        if alone:
            dist.destroy_process_group()


@torch.no_grad()
def evaluate_on_rank(task: EvaluationTask, rank_info: RankInfo) -> dict[str, Any] | None:
    """Evaluate this rank's share of the split. Every rank must call this.

    Returns:
        On rank 0, `metrics`, `samples`, `bad_samples`, `worst`, and the fields of `Details.result`.

    Raises:
        UserError: The ranks see different sets, or too many samples cannot be read.
    """
    shard_set = ShardSet.open(task.location, task.remote)
    check_same_shards(str(task.location), shard_set.digest)
    objective, device = task.objective, rank_info.device
    module = objective.build_model()
    folder = folder_at(task.folder)
    with local_copy(folder / WEIGHTS_FILE) as file:
        load_weights(module, read_tensors(file), str(folder / WEIGHTS_FILE))
    module = module.to(device).eval()
    every_rank(lambda: compute_as(module, task.precision, task.attention_path))
    metrics, details = Metrics(objective, device), details_of(objective)
    worst = WorstSamples(task.worst)
    bad = BadSamples(rank_info, folder, task.max_bad_fraction)
    model = _Autocast(module, task.precision, device)
    loader = task.reading.loader(
        shard_set,
        task.split,
        is_stream=task.is_stream,
        batch_size=task.batch_size,
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        num_workers=task.loader_workers,
    )
    recordings, formats = loader.recordings, task.reading.formats
    own = None if recordings is None else RecordingMetrics(objective, device, recordings)
    batches = map(task.renumbering.of, loader)
    for batch, samples, outputs in answered(model, objective, batches, formats, device, recordings):
        metrics.update(outputs, samples, len(batch.bad))
        if own is not None:
            own.update(outputs, samples)
        bad.note(batch)
        if samples.good.any():
            details.update(objective, outputs, samples)
            losses = objective.losses(outputs, samples, training=False)
            worst.update(losses, batch, partial(objective.shown, outputs, samples))
    num_samples, num_bad = shard_set.num_samples(task.split), metrics.sum_over_ranks()
    bad.check(task.split, num_bad, num_samples)
    if num_bad == num_samples:
        raise UserError(f"none of the {num_samples} samples of {task.split!r} can be read")
    values = metrics.compute() | (own.compute() if own is not None else {})
    joined = joined_details(details)
    chosen = worst.over_ranks()
    if joined is None:
        return None
    reader = ShardReader(shard_set, task.split, verify_samples=False)
    describe = partial(described, objective, formats, module, device, reader, task.is_stream)
    return {
        "metrics": {name.removeprefix("val_"): value for name, value in values.items()},
        "samples": num_samples,
        "bad_samples": int(num_bad),
        **joined.result(),
        "worst": [as_json(describe(sample)) for sample in chosen],
    }


class _Autocast:
    """A model that computes in the precision of a training, as DeepSpeed's engine does it."""

    def __init__(self, module: torch.nn.Module, precision: str, device: torch.device) -> None:
        self._module, self._device = module, device
        self._dtype = AUTOCAST_DTYPES.get(products_in(precision))

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        enabled = self._dtype is not None
        with torch.autocast(self._device.type, self._dtype, enabled=enabled):
            return self._module(*inputs, **keywords)
