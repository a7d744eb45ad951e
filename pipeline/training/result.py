"""The result of a finished training: what it returns, records in MLflow, and shows the user."""

import json
from typing import Any

from pipeline.config.folders import Folder
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.storage import read_bytes
from pipeline.runs.tracking import log_to_run
from pipeline.training.checkpoints import best_checkpoint, last_checkpoint
from pipeline.training.ending import stopped_early
from pipeline.training.objectives import objective_of
from pipeline.training.progress import describe
from shards import ShardSet

LEFT = "undelivered"
STOPPED_TAG = "perceiver.stopped_at_epoch"
_MAX_BYTES = 1 << 30


def training_result(
    config: Config, folder: Folder, run: RunRef, shard_set: ShardSet
) -> dict[str, Any]:
    """Return the result of a finished training, with the fields that `train` describes.

    Args:
        config: The configuration.
        folder: The folder of the training.
        run: The MLflow run.
        shard_set: The shard set.
    """
    best = best_checkpoint(folder / "checkpoints")
    last = last_checkpoint(folder / "checkpoints")
    assert best is not None and last is not None
    objective = objective_of(config, shard_set)
    return {
        "run_id": run.run_id,
        "checkpoint": str(best.path),
        "metrics": best.state.metrics,
        "score": objective.selected(best.state.metrics),
        "epochs": last.state.epoch,
        "stopped_early": stopped_early(config.training, last.state),
        "bad_steps": last.state.bad_steps,
        "parameters": objective.num_parameters(),
        "forward_flops": objective.forward_flops(),
        "bad_samples": _bad_samples(folder / "bad_samples.json"),
    }


def _bad_samples(path: Folder) -> list[Any]:
    try:
        return list(json.loads(read_bytes(path, _MAX_BYTES)))
    except FileNotFoundError:
        return []


def log_best(run: RunRef, result: dict[str, Any]) -> None:
    """Record the best checkpoint in the MLflow run, for `promote` and for people."""
    log_to_run(
        run,
        metrics={
            "best_score": result["score"],
            "forward_flops": result["forward_flops"],
            "parameters": result["parameters"],
        },
        tags={
            "perceiver.checkpoint": result["checkpoint"],
            **({STOPPED_TAG: str(stopped)} if (stopped := result["stopped_early"]) else {}),
        },
    )


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `train` returned."""
    state = "done before and verifies: skipped" if result["skipped"] else "done"
    console.say(f"training {state}; best epoch: {describe(result['metrics'])}")
    if stopped := result.get("stopped_early"):  # an older record has none
        console.say(f"stopped early after epoch {stopped}: the score did not improve any more")
    if bad := result.get("bad_steps"):
        console.say(f"{bad} steps were bad and are not in the weights (training.on_bad_step)")
    console.say(f"best checkpoint {result['checkpoint']}")
    console.say(
        f"{result['parameters']:,} parameters, {result['forward_flops']:,} FLOPs forward a sample; "
        f"MLflow run {result['run_id']}"
    )
    if result[LEFT]:
        console.say(result[LEFT])
    for source, reason in result["bad_samples"][:10]:
        console.say(f"could not be read: {source}: {reason}")
