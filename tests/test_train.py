"""One training, on real workers: data-parallel for certain, resumed exactly, logged once."""

import getpass
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mlflow.tracking import MlflowClient
from rank_processes import join_training, run_ranks
from safetensors.torch import load_file, save_file
from saved_checkpoints import load
from trainings import difference, final_weights

from cluster import ClusterError
from perceiver_model import PerceiverClassifier
from perceiver_model.layer_flops import latent_self_attend_flops
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import inputs_on, media_loader
from pipeline.runs.console import Console
from pipeline.training.checkpoints import best_checkpoint, last_checkpoint
from pipeline.training.optimizer import make_optimizer
from pipeline.training.step_figures import MEASURED
from pipeline.training.train import train
from pipeline.training.worker import TrainTask, open_training
from shards import ShardError, ShardReader, ShardSet

MakeConfig = Callable[..., Config]


@pytest.fixture
def config(make_config: MakeConfig, digit_shards: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str, output: str = "out") -> Config:
        return make_config(
            tmp_path / output, f"shards={digit_shards}", "cluster.num_workers=0", *overrides
        )

    return make


def train_and_keep_every_ranks_weights(rank: int, tasks: list[TrainTask]) -> None:
    join_training(rank, 2, str(Path(tasks[0].folder).parent))
    for task in tasks:
        with open_training(task) as (loop, state):
            loop.run_epoch(state)
            modules = loop.engine.module.named_parameters()
            weights = {name: p.detach().clone() for name, p in modules}
            save_file(weights, f"{task.folder}/rank-{rank}.safetensors")
            Path(f"{task.folder}/rank-{rank}.json").write_text(
                json.dumps({"world_size": loop.engine.dp_world_size, "pid": os.getpid()})
            )
    dist.barrier()
    dist.destroy_process_group()


STAGES = (0, 2)


@pytest.fixture(scope="module")
def ranks(
    make_config: MakeConfig, digit_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path]:
    """What two ranks have after an epoch: the folder has one of each ZeRO stage in it."""
    root = tmp_path_factory.mktemp("ranks")
    tasks = []
    for stage in STAGES:
        chosen = make_config(
            root / "out", f"shards={digit_shards}", "cluster.num_workers=2", "training.epochs=1",
            f"training.zero_stage={stage}",
        )  # fmt: skip
        (root / str(stage)).mkdir()
        tasks.append(TrainTask(chosen.model_dump_json(), str(root / str(stage)), None))
    run_ranks(train_and_keep_every_ranks_weights, (tasks,), 2)
    return chosen, root


@pytest.mark.parametrize("stage", STAGES)
def test_after_training_every_rank_has_the_same_weights(
    ranks: tuple[Config, Path], stage: int
) -> None:
    chosen, folder = ranks[0], ranks[1] / str(stage)
    about = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world_size"] for rank in about] == [2, 2]
    assert about[0]["pid"] != about[1]["pid"]
    first, second = (load_file(folder / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert difference(first, second) == 0
    fresh = PerceiverClassifier(chosen.classifier(3)).state_dict()
    assert difference(first, {name: fresh[name] for name in first}) > 1e-4, "nothing was trained"


def one_step_by_hand(config: Config) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights and gradients of the configuration's one step, in plain torch."""
    shard_set = ShardSet.open(config.shards_folder)
    reader = ShardReader(shard_set, "train")
    size = config.training.batch_size
    formats = config.data.formats
    batch = next(iter(media_loader(reader, formats, batch_size=size, seed=config.seed)))
    inputs, _ = inputs_on(batch, formats, torch.device("cpu"))
    torch.manual_seed(config.seed)
    model = PerceiverClassifier(config.classifier(3))
    optimizer = make_optimizer(model, config.training)
    smoothing = config.training.label_smoothing
    F.cross_entropy(model(inputs), batch.targets, label_smoothing=smoothing).backward()
    if config.training.gradient_clipping is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.gradient_clipping)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    return model.state_dict(), gradients


def final_gradients(config: Config) -> dict[str, torch.Tensor]:
    """The gradients of a training of one step: Adam's first moments are a share of them."""
    last = last_checkpoint(config.folder / "train" / "checkpoints")
    assert last is not None and last.state.step == 1
    moments = load(last, "optimizer")
    share = 1 - config.training.betas[0]
    return {
        name.removeprefix("exp_avg."): moment / share
        for name, moment in moments.items()
        if name.startswith("exp_avg.")
    }


@pytest.mark.usefixtures("ray_cluster")
def test_one_optimizer_step_is_the_same_on_two_ranks_one_process_and_by_hand(
    config: Callable[..., Config], console: Console
) -> None:
    # One batch an epoch; no augmentation, which needs the loop. Clipping hides the loss's scale, so
    # only one of them clips, and by much.
    one_step = ("training.batch_size=240", "training.epochs=1", "training.augment={}",
                "training.log_steps=1")  # fmt: skip
    whole, clipped = "training.gradient_clipping=null", "training.gradient_clipping=0.01"
    two = config(*one_step, whole, "cluster.num_workers=2", output="two")
    accumulated = config(*one_step, whole, "training.gradient_accumulation_steps=4",
                         "training.zero_stage=0", output="four")  # fmt: skip
    alone = config(*one_step, clipped, output="one")
    norm = 0.0  # of the whole gradient, before it is clipped
    for chosen in (two, accumulated, alone):
        run_id = train(chosen, console)["run_id"]
        weights, gradients = one_step_by_hand(chosen)
        # Adam's first step hides the gradient's scale: it divides by it.
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        assert difference(final_gradients(chosen), gradients) < 1e-3 * largest
        # For the same reason, rounding shows at the learning rate's scale.
        rate = chosen.training.learning_rate
        assert difference(final_weights(chosen), weights) < 2e-3 * rate * 50
        norm = norm or float(torch.nn.utils.get_total_norm(gradients.values()))
        found = MlflowClient(chosen.tracking_uri).get_run(run_id).data.metrics["gradient_norm"]
        assert found == pytest.approx(norm, rel=1e-4)


def test_training_is_one_finished_mlflow_run_with_everything_in_it(
    config: Callable[..., Config], console: Console, digit_shards: Path
) -> None:
    chosen = config("training.log_steps=2", "tracking.system_metrics=true",
                    "tracking.system_metrics_seconds=600", "cluster.device_peak_tflops=2",
                    "training.activation_checkpointing=1")  # fmt: skip
    result = train(chosen, console)
    client = MlflowClient(chosen.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (result["run_id"], "FINISHED")
    assert run.data.params["model.encoder.num_latents"] == "8"
    assert run.data.tags["engine.zero_stage"] == "2"
    assert run.data.tags["engine.optimizer"] == "adamw"
    assert run.data.tags["mlflow.source.name"] == sys.argv[0]
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["mlflow.user"] == run.info.user_id == getpass.getuser()
    digest = ShardSet.open(digit_shards).digest
    assert run.data.tags["perceiver.shards_digest"] == digest
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == digest[:36]
    assert digest in dataset.dataset.source
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert steps == list(range(2, 15, 2))
    for name in ("learning_rate", "gradient_norm", *MEASURED - {"device_memory_peak_gb"}):
        values = client.get_metric_history(run.info.run_id, name)
        assert [value.step for value in values] == steps, name
        assert all(value.value >= 0 for value in values)
    last = run.data.metrics
    # A pool halves the 28 × 28 pixels; a backward pass takes twice the FLOPs of a forward pass.
    assert last["tokens_per_second"] == pytest.approx(14 * 14 * last["samples_per_second"])
    speed = last["samples_per_second"] * last["forward_flops"] / 1e12
    assert last["mfu"] == pytest.approx(3 * speed / 2)
    self_attends = chosen.model.encoder.num_self_attends
    again = self_attends * latent_self_attend_flops(chosen.model.encoder) / last["forward_flops"]
    assert last["tflops_per_second"] == pytest.approx((3 + again) * speed)
    assert 0 <= last["data_wait_share"] <= 1
    resident = psutil.Process().memory_info().rss / 1e9
    assert resident / 3 < last["host_memory_gb"] < 3 * resident
    epochs = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert [metric.step for metric in epochs] == [7, 14]
    assert any(name.startswith("system/") for name in run.data.metrics)
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert "config.yaml" in artifacts
    # Each evaluation has its confusion matrix, as MLflow names pictures that have a step.
    assert run.data.tags["mlflow.loggedImages"] == "true"
    images = [each.path for each in client.list_artifacts(run.info.run_id, "images")]
    named = [path.split("+")[:3] for path in images if path.endswith(".png")]
    assert sorted(named) == [["images/confusion_matrix", "step", step] for step in ("14", "7")]
    assert sum(path.endswith("+compressed.webp") for path in images) == 2
    assert not list(chosen.folder.glob("mlflow/*")), "all is delivered"


def test_a_second_train_skips_and_changed_settings_are_refused(
    config: Callable[..., Config], console: Console
) -> None:
    first = train(config(), console)
    again = train(config(), console)
    assert (first["skipped"], again["skipped"]) == (False, True)
    assert again["checkpoint"] == first["checkpoint"]
    with pytest.raises(UserError, match=r"training\.learning_rate was 0\.005, is 0\.001.*--fresh"):
        train(config("training.learning_rate=1e-3"), console)
    with pytest.raises(UserError, match=r"training\.optimizer was 'adamw', is 'lamb'"):
        train(config("training.optimizer=lamb", "training.eps=1e-8"), console)
    # A record that is older than a field has its default.
    path = config().folder / "stages" / "train.json"
    record = json.loads(path.read_text())
    for name in ("optimizer", "momentum", "schedule.step_epochs", "schedule.factor"):
        del record["fingerprint"][f"training.{name}"]
    for name in ("training.augment.mask_bytes", "model.adapter.stages"):
        del record["fingerprint"][name]
    path.write_text(json.dumps(record))
    assert train(config(), console)["skipped"]
    with pytest.raises(UserError, match=r"training\.optimizer was 'adamw', is 'lamb'"):
        train(config("training.optimizer=lamb", "training.eps=1e-8"), console)
    # Where it runs is no such setting.
    assert train(config("cluster.cpus_per_worker=2"), console)["skipped"]
    assert not train(config("training.learning_rate=1e-3"), console, fresh=True)["skipped"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.decoder={}", "training.activation_checkpointing=0.5"],
        ["model.positions={kind: learned, num_channels: 8, projected_channels: 16}"],
    ],
    ids=["a decoder, checkpointed", "learned positions"],
)
def test_other_models_and_ways_to_run_them_train(
    config: Callable[..., Config], console: Console, overrides: list[str]
) -> None:
    # Of three classes; seeds and processors differ, so the bound is not close to what is reached.
    result = train(config("training.epochs=8", *overrides), console)
    assert result["metrics"]["val_accuracy"] > 0.5


def test_bf16_trains(config: Callable[..., Config], console: Console) -> None:
    chosen = config("training.precision=bf16", "training.epochs=8")
    result = train(chosen, console)
    assert result["metrics"]["val_accuracy"] > 0.5
    run = MlflowClient(chosen.tracking_uri).get_run(result["run_id"])
    assert run.data.tags["engine.precision"] == "bf16"
    assert all(tensor.dtype == torch.float32 for tensor in final_weights(chosen).values())


def test_damaged_samples_are_named_and_weigh_nothing_until_they_are_too_many(
    config: Callable[..., Config], console: Console, digit_shards: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(digit_shards, damaged)
    shard_set = ShardSet.open(damaged)
    sample = ShardReader(shard_set, "train").read(5)
    tar = damaged / shard_set.shards("train")["name"][0].as_py()
    content = bytearray(tar.read_bytes())
    start = content.find(bytes(sample.members["image.npy"]))
    content[start : start + 6] = b"broken"
    tar.write_bytes(content)
    few = config(f"shards={damaged}")
    result = train(few, console)
    assert [source for source, _ in result["bad_samples"]] == [sample.source_uri]
    assert "has another sha256 than its index says" in result["bad_samples"][0][1]
    at_once = config(f"shards={damaged}", "data.corrupt_samples=fail", output="at_once")
    with pytest.raises(ShardError, match="has another sha256 than its index says"):
        train(at_once, console)
    strict = config(f"shards={damaged}", "data.max_bad_fraction=0", output="strict")
    with pytest.raises(
        UserError, match=f"1 of .* samples.*max_bad_fraction=0: {sample.source_uri}"
    ):
        train(strict, console)
    client = MlflowClient(strict.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    assert [r.info.status for r in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_the_best_and_the_last_checkpoint_are_kept(
    config: Callable[..., Config], console: Console
) -> None:
    chosen = config("training.epochs=4")
    result = train(chosen, console)
    folder = chosen.folder / "train" / "checkpoints"
    best, last = best_checkpoint(folder), last_checkpoint(folder)
    assert best is not None
    assert last is not None
    before = "step-00000021"  # the last two are kept, lest the last be damaged
    kept = {best.path.name, before, last.path.name}
    assert {path.name for path in folder.iterdir()} == kept
    assert last.state.epoch == 4
    assert result["checkpoint"] == str(best.path)
    assert asdict(best.state)["score"] == result["metrics"]["val_accuracy"]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.num_workers=32", r"needs 32 CPUs \(32 workers x 1\).*lower cluster\.num_workers"),
        ("cluster.use_gpu=true", r"needs 2 GPUs .* the cluster has 0"),
    ],
)
def test_more_workers_than_the_cluster_holds_are_refused(
    config: Callable[..., Config], console: Console, override: str, message: str
) -> None:
    chosen = config("cluster.num_workers=2", override)
    with pytest.raises(ClusterError, match=message):
        train(chosen, console)
    assert not chosen.folder.exists()


def test_a_batch_larger_than_the_training_split_is_refused(
    config: Callable[..., Config], console: Console
) -> None:
    chosen = config("training.batch_size=512")
    with pytest.raises(UserError, match=r"batch_size is 512.*only 255 training samples"):
        train(chosen, console)
    assert not chosen.folder.exists()
