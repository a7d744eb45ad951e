"""`perceiver plan` tells a training's memory, time and problems, and a real training agrees."""

import json
import socket
from typing import Any

import pytest
import torch
from modality_samples import make_config, make_shards
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.cli.main import main
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.plan.devices import GIB, NAMES, device_named
from pipeline.plan.live_tensors import LiveTensors
from pipeline.plan.memory import Sizes, stage_memory
from pipeline.plan.plan import plan
from pipeline.plan.planned_set import find_set, planned_objective
from pipeline.plan.request import Request
from pipeline.plan.step_trace import StepTrace, build_on_meta, trace_step
from pipeline.plan.timing import step_time
from pipeline.runs.console import Console
from pipeline.training.worker import TrainTask, open_training

TOLERANCE = 0.15


def traced(config: Config, micro_batch: int, classes: int = 1000) -> tuple[StepTrace, int]:
    _, planned = find_set(config, Console(), classes=classes, samples=None)
    objective = planned_objective(config, planned)
    model = build_on_meta(objective, config)
    trained = sum(parameter.numel() for parameter in model.parameters())
    return trace_step(model, objective, config, micro_batch, planned.num_classes), trained


@pytest.fixture(scope="module")
def imagenet() -> tuple[StepTrace, int]:
    autocast = ["training.precision=bf16_autocast"]
    return traced(load_config("perceiver-io-imagenet", autocast), micro_batch=64)


def test_memory_and_speed_are_those_measured_on_an_h100(imagenet):
    """`perceiver bench model`: batch 64, bf16 by autocast, 37.9 GiB, 257 images/s."""
    trace, trained = imagenet
    sizes = Sizes(
        trained=trained,
        fixed=0,
        largest=trace.largest_gradient,
        moments=2,
        averages=False,
        is_gpu=True,
        accumulates=False,
        overhead=0,
    )
    assert trained == 48_440_627
    assert stage_memory(0, sizes, trace, workers=1).peak / GIB == pytest.approx(37.9, rel=0.05)
    seconds = step_time(
        trace.operations,
        device_named("h100", "bf16"),
        micro_batches=1,
        trained=trained,
        moments=2,
        stage=0,
        workers=1,
        compiled=False,
    ).total
    assert 64 / seconds == pytest.approx(257, rel=TOLERANCE)


def test_a_residual_stream_in_bf16_saves_what_the_plan_counts():
    kept = [
        traced(load_config("perceiver-io-imagenet", [f"training.precision={precision}"]), 2)[0]
        for precision in ("bf16", "bf16_autocast", "float32")
    ]
    assert kept[0].saved < 0.9 * kept[1].saved
    assert kept[1].saved < kept[2].saved


def test_flops_of_the_plain_algorithm_are_those_that_papers_count():
    config = load_config("images", ["training.attention_path=fused"])
    trace, _ = traced(config, micro_batch=2)
    _, planned = find_set(config, Console(), classes=1000, samples=None)
    forward, backward, again = trace.flops()
    assert forward / 2 == pytest.approx(
        planned_objective(config, planned).forward_flops(), rel=0.02
    )
    assert backward == pytest.approx(2 * forward, rel=0.1)
    assert again == 0


def test_activation_checkpointing_takes_less_memory_and_does_work_again():
    trace, _ = traced(load_config("images", []), micro_batch=4)
    less, _ = traced(load_config("images", ["training.activation_checkpointing=1"]), micro_batch=4)
    assert less.peak < 0.85 * trace.peak
    forward, backward, again = less.flops()
    assert (forward, backward) == pytest.approx(trace.flops()[:2])
    assert 0.2 * forward < again <= forward


@pytest.mark.parametrize(
    ("kind", "training"),
    [
        ("text", {"zero_stage": 0}),
        ("points", {"zero_stage": 2, "precision": "bf16", "activation_checkpointing": 0.5}),
    ],
    ids=str,
)
def test_a_real_training_takes_the_planned_memory(kind, training, tmp_path, console):
    tree = make_config(kind, tmp_path, **training).tree()
    tree["model"]["encoder"] |= {"num_latents": 32, "latent_dim": 64, "num_self_attends": 4}
    config = Config.model_validate(tree, strict=False)
    make_shards(kind, tmp_path, config)
    stage = plan(config, console, Request(gpu="cpu"))["memory"]["stages"][training["zero_stage"]]
    planned = stage["peak"] - stage["overhead"]

    peaks = []

    def loop(task: TrainTask) -> None:
        with LiveTensors() as live, open_training(task) as (running, state):
            for tensor in (*running.engine.module.parameters(), *running.engine.module.buffers()):
                live.add(tensor)
            run = running.micro_steps.run

            def watched(*args: Any) -> Any:
                live.restart()
                found = run(*args)
                peaks.append(live.peak_with_gradients)
                return found

            running.micro_steps.run = watched
            running.run_epoch(state)

    folder = tmp_path / "train"
    folder.mkdir()
    task = TrainTask(config.model_dump_json(), str(folder), None)
    TorchTrainer(loop, train_loop_config=task, scaling_config=ScalingConfig(num_workers=0)).fit()
    assert planned == pytest.approx(max(peaks), rel=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("autoencode", ["training.batch_size=4"]),
        ("autoregressive", ["training.batch_size=4", "training.precision=bf16"]),
        ("stream", []),
        ("table", ["training.ema_decay=0.9"]),
        ("text", ["training.optimizer=muon", "training.zero_stage=0"]),
        ("regress", []),
    ],
)
def test_every_objective_has_a_plan(name, overrides, tmp_path, console):
    config = load_config(name, [f"output={tmp_path / 'runs'}", "cluster.use_gpu=false", *overrides])
    result = plan(config, console, Request(gpu="h100", samples=1000))
    # Products of queries that are not decoded, or that a faster path leaves out, are not done.
    done = result["flops"]["forward_step"] / config.training.batch_size
    assert 0.3 * result["flops"]["forward_sample"] < done < 1.3 * result["flops"]["forward_sample"]
    peaks = [stage["peak"] for stage in result["memory"]["stages"]]
    assert all(peak > 0.75 * GIB for peak in peaks)
    assert result["fit"]["micro_batch"] >= 1
    assert result["run"]["steps_per_epoch"] == 1000 // config.training.batch_size
    assert not (tmp_path / "runs").exists()


def test_what_would_not_work_is_named_and_the_status_is_1(tmp_path, capsys):
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = [
            "plan",
            "perceiver-io-imagenet",
            "model.encoder.num_blocks=1",
            "model.encoder.num_cross_attends=1",
            f"output={tmp_path / 'runs'}",
            "--gpu=t4",
            "--gpu-memory=4",
            "--samples=100000",
            "--price=0.5",
            "--json",
            f"tracking.uri=http://{address}",
            f"cluster.address={address}",
        ]
        assert main(arguments) == 1
    result = json.loads(capsys.readouterr().out)
    texts = "\n".join(result["problems"])
    assert "one worker needs" in texts
    assert "training.gradient_accumulation_steps=" in texts
    assert "'bf16', which t4 has no fast products of" in texts
    assert f"cluster.address={address}: nothing answers there" in texts
    assert f"tracking.uri=http://{address}: no MLflow answers there" in texts
    assert result["run"]["cost"] == pytest.approx(
        result["run"]["seconds"] / 3600 * 8 * 0.5, rel=1e-6
    )
    assert any("no shard set yet" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("gpu", "told"),
    [
        ("cpu", "it saves no time there"),
        ("h100", "h100 has bf16, which is as fast and needs no scale"),
        ("v100-16", "so some of the steps train nothing"),
    ],
)
def test_fp16_has_a_note_on_its_loss_scale_and_its_device(gpu, told, tmp_path, console):
    config = load_config("digits", [f"output={tmp_path}", "study=null", "training.precision=fp16"])
    notes = [note for note in plan(config, console, Request(gpu=gpu))["notes"] if "fp16" in note]
    assert len(notes) == 1
    assert "multiplies the loss by a scale, at first 65,536" in notes[0]
    assert told in notes[0]


def test_more_cpus_than_this_machine_has_are_a_problem(tmp_path, console):
    config = load_config("digits", [f"output={tmp_path}", "cluster.cpus_per_worker=5000"])
    (problem,) = plan(config, console, Request())["problems"]
    assert problem.startswith("the training needs 10000 CPUs (2 workers x 5000)")


@pytest.mark.parametrize(
    ("deploy", "cluster", "told"),
    [
        ("gpus: 2", {"workers_per_node": 3}, "cluster.workers_per_node=3: a machine's GPUs are"),
        ("gpus: 2, cpus: 7", {"cpus_per_worker": 4}, "cluster.deploy.cpus=7: a machine's training"),
        ("gpus: 2", {"placement": "strict_pack"}, "one machine has room for 2 of 4 processes"),
        ("gpus: 1", {"use_gpu": "false"}, "cluster.deploy.gpus=1: no GPU is used"),
        ("gpus: 4, cpus: 16", {"workers_per_node": 4, "cpus_per_worker": 4}, None),
    ],
)
def test_machines_that_cannot_hold_the_workers_are_a_problem(
    deploy, cluster, told, tmp_path, console
):
    config = load_config("digits", [
        f"output={tmp_path}", f"cluster.deploy={{{deploy}}}", "cluster.use_gpu=true",
        "cluster.num_workers=4", *(f"cluster.{name}={value}" for name, value in cluster.items()),
    ])  # fmt: skip
    problems = "\n".join(plan(config, console, Request())["problems"])
    assert told in problems if told else "cluster.deploy" not in problems


def test_mfu_counts_no_work_that_the_separable_path_leaves_out(tmp_path, console):
    config = load_config("imagenet", [
        f"output={tmp_path}", "cluster.num_workers=1", "model.encoder.num_blocks=1",
        "model.encoder.num_cross_attends=1",
    ])  # fmt: skip
    found = plan(config, console, Request(gpu="cpu"))
    done = found["flops"]["forward_step"] + found["flops"]["backward_step"]
    seconds, peak = found["step"]["seconds"], found["device"]["tflops"] * 1e12
    assert found["run"]["mfu"] == pytest.approx(done / seconds / peak)
    assert found["run"]["mfu"] < 1 < found["flops"]["model_step"] / seconds / peak


def test_a_full_or_closed_disk_is_a_problem(tmp_path, console):
    folder = tmp_path / "closed"
    folder.write_text("a file, not a folder")
    config = load_config("digits", [f"output={folder}"])
    problems = plan(config, console, Request())["problems"]
    assert problems[0].startswith(f"output={folder}")


def test_a_set_of_another_format_is_a_problem(tmp_path, console):
    config = make_config("points", tmp_path)
    make_shards("points", tmp_path, config)  # its manifest names no format
    problems = plan(config, console, Request())["problems"]
    assert "was made with data." in problems[0]
    with pytest.raises(UserError, match="--classes is 3, but"):
        plan(config, console, Request(classes=3))


def test_devices_have_names_or_numbers():
    for name in NAMES:
        assert device_named(name, "bf16").memory > GIB
    assert not device_named("v100-16", "bf16").has_bf16
    assert device_named("mine", "bf16", memory_gib=10, tflops=50).memory == 10 * GIB
    with pytest.raises(UserError, match="--gpu mine: is not known"):
        device_named("mine", "bf16", memory_gib=10)


def test_live_tensors_count_storages_once_and_until_they_are_freed():
    with LiveTensors() as live:
        first = torch.zeros(1000)
        view = first[10:].view(-1)
        assert live.live == 4000
        second = first + 1
        assert torch.zeros(1000, device="meta").untyped_storage().nbytes() == 4000  # takes nothing
        assert live.live == 8000
        del first, view
        assert live.live == 4000
        del second
    assert (live.live, live.peak) == (0, 8000)
