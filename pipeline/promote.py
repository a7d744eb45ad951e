"""``perceiver promote``: a run's best model into the registry, if it beats the champion."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.batches import inputs_on, media_loader
from pipeline.checkpoints import Checkpoint, read_checkpoint
from pipeline.config import Config
from pipeline.console import Console
from pipeline.errors import GateRefusedError, UserError
from pipeline.inference import ModelCard, Predictor
from pipeline.media import MediaFormat
from pipeline.model_input import fitted_media
from pipeline.model_package import package
from pipeline.tracking import run_config
from shards import ShardReader, ShardSet

EVALUATION_BATCH = 64
# Files of a model version, under artifacts/.
CARD_FILE, WEIGHTS_FILE = "card.json", "model.safetensors"


@dataclass(frozen=True)
class Evaluation:
    """A model on a split of a pinned shard set."""

    accuracy: float
    samples: int
    shards_digest: str
    split: str


def promote(
    mlflow_client: Any,
    run_id: str,
    console: Console,
    *,
    name: str | None = None,
    alias: str | None = None,
    split: str = "validation",
) -> dict[str, Any]:
    """Register a run's best checkpoint and move the alias to it, if it beats the alias' model.

    Both models are evaluated here and now on the same split of the run's shard set.

    Args:
        mlflow_client: of the tracking server; :func:`pipeline.tracking.client`.
        run_id: an MLflow run of ``perceiver train``, or a trial or study of ``perceiver tune``
            (a study stands for its best trial).
        name, alias: where to register; default: the run's configuration.
        split: decides; the shard set must have it.

    Returns:
        ``model_uri``, ``version``, ``accuracy`` on ``split``, ``champion_accuracy`` (None if there
        was none), ``run_id``, ``skipped`` (this run is the alias' model already).

    Raises:
        UserError: no such run, or it has no checkpoint.
        GateRefusedError: it does not beat the champion.
    """
    config = run_config(mlflow_client, run_id)
    run = mlflow_client.get_run(run_id)
    if best := run.data.tags.get("perceiver.best_trial"):
        return promote(mlflow_client, best, console, name=name, alias=alias, split=split)
    name, alias = name or config.registry.model_name, alias or config.registry.alias
    checkpoint = _checkpoint_of(run)
    shard_set = ShardSet.open(run.data.tags["perceiver.shards"])
    if shard_set.digest != run.data.tags["perceiver.shards_digest"]:
        raise UserError(
            f"{run.data.tags['perceiver.shards']}: is no longer the shard set that run {run_id} "
            "was trained on; train on the new one first"
        )
    champion = _champion(mlflow_client, name, alias)
    if champion is not None and champion.run_id == run_id:
        return _result(name, alias, champion.version, run_id, champion.tags, skipped=True)
    if len(config.data.formats) > 1:
        raise UserError(
            f"run {run_id} reads {', '.join(config.data.formats)} at once; models of one modality "
            "can be registered"
        )
    card = ModelCard(
        config.classifier(len(shard_set.manifest.classes), shard_set.manifest.config),
        fitted_media(config.data.media, shard_set.manifest.config),
        shard_set.manifest.classes,
    )
    weights, _ = checkpoint.load()
    console.notice(f"evaluating run {run_id} on {split} of {shard_set.location}")
    evaluation = evaluate(Predictor(card, weights), shard_set, split)
    tags = {
        "perceiver.run_id": run_id,
        "perceiver.shards_digest": evaluation.shards_digest,
        "perceiver.split": split,
        "perceiver.accuracy": repr(evaluation.accuracy),
        "perceiver.samples": str(evaluation.samples),
    }
    if champion is not None:
        theirs = _evaluate_champion(mlflow_client, champion, card.media, shard_set, split, console)
        tags["perceiver.champion_version"] = champion.version
        tags["perceiver.champion_accuracy"] = repr(theirs.accuracy)
        if evaluation.accuracy <= theirs.accuracy:
            raise GateRefusedError(
                f"not promoted: run {run_id} has accuracy {evaluation.accuracy:.4f} on the {split} "
                f"split, and {name}@{alias} (version {champion.version}) has {theirs.accuracy:.4f}"
            )
    version = _register(mlflow_client, run, config, card, checkpoint, name, tags)
    mlflow_client.set_registered_model_alias(name, alias, version)
    return _result(name, alias, version, run_id, tags, skipped=False)


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what :func:`promote` returned."""
    if result["skipped"]:
        console.say(
            f"{result['model_uri']} is this run's model already (version {result['version']})"
        )
        return
    before = result["champion_accuracy"]
    against = "there was no champion" if before is None else f"the champion before had {before:.4f}"
    console.say(
        f"{result['model_uri']} is now version {result['version']}: accuracy "
        f"{result['accuracy']:.4f} on the {result['split']} split; {against}"
    )


@torch.inference_mode()
def evaluate(predictor: Predictor, shard_set: ShardSet, split: str) -> Evaluation:
    """Accuracy over every sample of a split; a sample that cannot be read counts as an error.

    Raises:
        ShardError: the set has no such split.
    """
    formats = {predictor.card.media.modality: predictor.card.media}
    batches = media_loader(
        ShardReader(shard_set, split), formats, batch_size=EVALUATION_BATCH, shuffle=False
    )
    correct = count = 0
    for batch in batches:
        logits = predictor.model(*inputs_on(batch, formats, predictor.device)).cpu()
        good = batch.weights > 0
        correct += int(((logits.argmax(dim=1) == batch.targets) & good).sum())
        count += int(good.sum()) + len(batch.bad)
    return Evaluation(correct / count, count, shard_set.digest, split)


def load_registered(mlflow_client: Any, version: Any) -> Predictor:
    """The weights and card of a model version, without running its code."""
    import mlflow

    uri = mlflow_client.get_model_version_download_uri(version.name, version.version)
    with tempfile.TemporaryDirectory(prefix="perceiver-model-") as folder:
        path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)) / "artifacts"
        if not (path / CARD_FILE).is_file():
            raise UserError(
                f"{version.name} version {version.version}: is no Perceiver that 'perceiver "
                "promote' registered; register this one under another --name"
            )
        return Predictor.load(path / CARD_FILE, path / WEIGHTS_FILE)


def _checkpoint_of(run: Any) -> Checkpoint:
    path = run.data.tags.get("perceiver.checkpoint")
    if path is None:
        raise UserError(
            f"{run.info.run_id}: has no checkpoint (its status is {run.info.status}); finish it "
            "with 'perceiver train'"
        )
    return read_checkpoint(Path(path))


def _champion(mlflow_client: Any, name: str, alias: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def _evaluate_champion(
    mlflow_client: Any,
    champion: Any,
    media: MediaFormat,
    shard_set: ShardSet,
    split: str,
    console: Console,
) -> Evaluation:
    name = champion.name
    console.notice(f"evaluating {name} version {champion.version} on the same samples")
    predictor = load_registered(mlflow_client, champion)
    theirs, ours = predictor.card, shard_set.manifest
    if theirs.media != media or theirs.classes != ours.classes:
        differs = "takes other input" if theirs.media != media else "tells other classes apart"
        raise UserError(
            f"{name} version {champion.version} {differs} than this run, so the two cannot be "
            "compared; register this one under another --name"
        )
    return evaluate(predictor, shard_set, split)


def _register(
    mlflow_client: Any,
    run: Any,
    config: Config,
    card: ModelCard,
    checkpoint: Checkpoint,
    name: str,
    tags: dict[str, str],
) -> str:
    """Log the model to its run and make it a version; returns the version."""
    import mlflow
    from mlflow.models import Model

    mlflow.set_experiment(experiment_id=run.info.experiment_id)
    with tempfile.TemporaryDirectory(prefix="perceiver-model-") as folder:
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run.info.run_id,
            registered_model_name=name,
            **package(card, Path(folder) / CARD_FILE, checkpoint.weights_file, config.data),
        )
    version = str(info.registered_model_version)
    for key, value in tags.items():
        mlflow_client.set_model_version_tag(name, version, key, value)
    return version


def _result(
    name: str, alias: str, version: str, run_id: str, tags: dict[str, str], *, skipped: bool
) -> dict[str, Any]:
    before = tags.get("perceiver.champion_accuracy")
    return {
        "model_uri": f"models:/{name}@{alias}",
        "version": str(version),
        "accuracy": float(tags["perceiver.accuracy"]),
        "champion_accuracy": None if before is None else float(before),
        "split": tags["perceiver.split"],
        "run_id": run_id,
        "skipped": skipped,
    }
