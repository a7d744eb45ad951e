"""What a training leaves for people at its end: a report with examples, pictures, a model card."""

from collections.abc import Mapping
from typing import Any

import psutil
import torch

from pipeline.config.folders import Folder
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.evaluation.described import as_json
from pipeline.evaluation.examples import examples_of
from pipeline.evaluation.html_report import html_report
from pipeline.media.errors import MediaError
from pipeline.registry.model_card import training_card
from pipeline.registry.run_model import card_of
from pipeline.registry.served.card import ModelCard
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.storage import make_folder, write_bytes
from pipeline.runs.strict_json import to_json
from pipeline.runs.tracking import log_to_run
from pipeline.training.checkpoint_files import load_weights
from pipeline.training.checkpoints import best_checkpoint
from pipeline.training.epoch_report import best_details
from pipeline.training.objectives import name_field
from pipeline.training.reports.pictures import confusion_picture, sample_picture
from shards import ShardError, ShardSet
from shards.redaction import redacted_tree

FOLDER = "report"
"""The folder of these files, in the training's folder and among the run's artifacts."""
_BYTES_OF_WEIGHT, _COPIES = 4, 3


def report_best(
    config: Config,
    folder: Folder,
    run: RunRef,
    shard_set: ShardSet,
    result: Mapping[str, Any],
    console: Console,
) -> None:
    """Log what people read about the best checkpoint of a finished training.

    The run gets `model_card.md`, and in `report/`: `report.html`, `report.json`,
    `confusion_matrix.png` and `example-N.png`, as far as the objective has them.

    Args:
        config: The configuration.
        folder: The folder of the training.
        run: The MLflow run.
        shard_set: The shard set.
        result: The result of the training.
        console: The console. It shows a line if there are no examples although they are wanted.
    """
    best = best_checkpoint(folder / "checkpoints")
    assert best is not None
    card, details = card_of(config, shard_set), best_details(folder, best.state.step)
    split = "validation" if "validation" in shard_set.manifest.counts else "train"
    examples = _examples(config, folder, card, shard_set, split, console)
    files = {}
    if picture := confusion_picture(details.get("confusion_matrix")):
        files["confusion_matrix.png"] = picture
    for number, (sample, inputs) in enumerate(examples, start=1):
        if picture := sample_picture(sample, inputs):
            files[f"example-{number}.png"] = picture
    if details or examples:
        values = {"classes": None, "confusion_matrix": None, "calibration": None, **details}
        report = redacted_tree({
            "model": f"run {run.run_id}",
            "run_id": run.run_id,
            "versions": [],
            "set": config.shards_folder,
            "digest": shard_set.digest,
            "split": split,
            "samples": shard_set.num_samples(split),
            "bad_samples": len(result["bad_samples"]),
            "precision": config.training.precision,
            **name_field(type(card.objective)),
            "metrics": _of_split(result["metrics"], split),
            **values,
            "worst": [as_json(sample) for sample, _ in examples],
        })  # fmt: skip
        heading = f"{len(examples)} samples, spread evenly over the split"
        files["report.html"] = html_report(report, heading).encode()
        report["examples"] = report.pop("worst")
        files["report.json"] = to_json(report).encode()
    make_folder(folder / FOLDER)
    for name, data in files.items():
        write_bytes(folder / FOLDER / name, data)
    log_to_run(run, artifacts=[folder / FOLDER / name for name in files], to=FOLDER)
    text = training_card(config, card, shard_set, result, details)
    write_bytes(folder / "model_card.md", text.encode())
    log_to_run(run, artifacts=[folder / "model_card.md"])


def _of_split(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    prefix = "val_" if split == "validation" else "train_"
    return {n.removeprefix(prefix): v for n, v in metrics.items() if n.startswith(prefix)}


def _examples(
    config: Config,
    folder: Folder,
    card: ModelCard,
    shard_set: ShardSet,
    split: str,
    console: Console,
) -> list[Any]:
    """Return the examples; none, with a line, if they cannot be made here."""
    count = config.tracking.examples
    if not count:
        return []
    needed = _COPIES * _BYTES_OF_WEIGHT * card.objective.num_parameters()
    free = psutil.virtual_memory().available
    if needed > free:
        console.notice(
            f"no examples are logged: they need about {needed / 1e9:.1f} GB of memory on this "
            f"machine, and {free / 1e9:.1f} GB are free; tracking.examples=0 wants none"
        )
        return []
    best = best_checkpoint(folder / "checkpoints")
    assert best is not None
    module: torch.nn.Module = card.objective.build_model()
    try:
        load_weights(module, best.load_model(), str(best.path))
        return examples_of(card, shard_set, split, module, count)
    except (UserError, ShardError, MediaError) as error:
        console.notice(f"no examples are logged: {error}")
        return []
