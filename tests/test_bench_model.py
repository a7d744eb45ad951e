"""`perceiver bench model`: what it measures, compares, refuses and prints."""

import dataclasses
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.attention import ATTENTION_PATHS
from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.config import (
    DecoderConfig,
    EncoderConfig,
    FourierConfig,
    LearnedPositions,
)
from perceiver_model.flops import num_parameters
from perceiver_model.inputs import ConvStem, ImageInput, Pixels
from perceiver_model.presets import PRESETS
from pipeline.bench import jobs, machine, model, peers, variants, worker
from pipeline.bench.images import raw_images
from pipeline.bench.jobs import Job, ask_worker
from pipeline.bench.model import DisagreementError, Options, bench_model
from pipeline.bench.report import report
from pipeline.bench.variants import PATHS, Variant, as_transformers, resized
from pipeline.bench.worker import do, inference_step, training_step
from pipeline.cli import main
from pipeline.errors import GateRefusedError

TINY = ClassifierConfig(
    input=ImageInput(height=32, width=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    adapter=Pixels(),
    positions=FourierConfig(num_bands=64, max_resolution=(224, 224)),
    encoder=EncoderConfig(
        num_latents=8, latent_dim=32, num_blocks=2, num_cross_attends=1, num_self_attends=2
    ),
    decoder=DecoderConfig(),
    num_classes=10,
)
FAMILY = {
    "fourier": TINY,
    "learned": dataclasses.replace(
        TINY,
        adapter=Pixels(num_channels=256),
        positions=LearnedPositions(),
        decoder=DecoderConfig(query_residual=False),
    ),
    "conv": dataclasses.replace(
        TINY, adapter=ConvStem(), positions=FourierConfig(num_bands=64, max_resolution=(56, 56))
    ),
}
OPTIONS = Options(
    name="tiny", config=as_transformers(TINY), peers=("transformers", "lucidrains"),
    compile=False, device="cpu", precision="float32", seconds=0.01,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_and_quiet(monkeypatch):
    """One thread here and in workers, since other work may share the machine; small matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(machine.MATMUL_SIZE, "cpu", 128)
    monkeypatch.setattr(model, "SECONDS", 0.01)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(monkeypatch):
    """The verb with its jobs done in this process, where a test can reach them."""
    monkeypatch.setattr(model, "bench_model", functools.partial(bench_model, ask=do))
    monkeypatch.setitem(PRESETS, "tiny", TINY)


def job(task, config=TINY, **fields):
    return Job(
        task=task, device="cpu", precision="float32", config=config.to_dict(), seconds=0, **fields
    )


# --- real measurements ---


def test_all_three_train_infer_and_cross_attend_on_the_same_images(console, tmp_path):
    result = bench_model(OPTIONS, console, ask=do)
    assert result["failed"] == 0
    assert result["agreement"]["transformers"]["auto"] < 1e-5
    assert result["machine"]["matmul_flops_per_second"] > 1e6
    rows = {(row["work"], row["label"]): row for row in result["rows"]}
    assert len(rows) == 9
    for (work, label), row in rows.items():
        assert row["status"] == "ok" and row["batch_size"] == 1
        assert row["ms_per_step"] == pytest.approx(1000 / row["images_per_second"])
        ours = rows[work, "ours"]
        ratio = row["images_per_second"] / ours["images_per_second"]
        assert row["vs_ours"] == pytest.approx(ratio)
        rate = row["flops_per_image"] * row["images_per_second"]
        assert row["tflops"] == pytest.approx(rate / 1e12)
        assert row["mfu"] == pytest.approx(rate / result["machine"]["matmul_flops_per_second"])
        assert row["peak_bytes"] > 10e6 and row["bytes_above_model"] >= 0
        if label == "transformers":
            assert row["flops_per_image"] == ours["flops_per_image"]
            assert row["parameters"] == ours["parameters"]
    for label in ("ours", "transformers", "lucidrains"):
        training, inference = rows["train", label], rows["inference", label]
        assert training["flops_per_image"] == 3 * inference["flops_per_image"]
    report(result, console)
    printed = (tmp_path / "console.txt").read_text()
    for told in ("training step", "× ours", "inference", "MFU %", "heavier model", "agree with"):
        assert told in printed


def test_the_verb_measures_in_processes_of_their_own(monkeypatch, capfd):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    args = ["--preset", "tiny", "--no-compile", "--vs", "none", "--work", "inference"]
    assert main(["bench", "model", *args, "--device", "cpu", "--json"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    (row,) = result["rows"]
    assert row["label"] == "ours" and row["images_per_second"] > 0
    assert result["machine"]["matmul_size"] == 2048  # not what this process was told
    assert result["agreement"] == {}


@pytest.mark.parametrize("name", FAMILY)
def test_ours_agrees_with_transformers_by_every_path(name):
    config = as_transformers(FAMILY[name])
    answer = do(job("agreement", config, paths=("auto", *PATHS)))
    assert set(answer["errors"]) == {"auto", *PATHS}
    assert max(answer["errors"].values()) < 1e-5


def test_without_the_settings_of_transformers_they_would_not_agree():
    answer = do(job("agreement", FAMILY["learned"]))
    assert answer["errors"]["auto"] > model.TOLERANCE


def test_a_training_step_changes_the_weights_and_inference_does_not():
    implementation = peers.IMPLEMENTATIONS["ours"]
    network = implementation.classifier(TINY)
    images = raw_images(TINY, 2, "cpu")
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}

    def unchanged():
        now = dict(network.named_parameters())
        return {name for name in before if torch.equal(before[name], now[name])}

    assert inference_step(network, images, job("inference"))().shape == (2, 10)
    assert unchanged() == set(before)
    training_step(network, images, torch.tensor([0, 1]), job("train"))()
    # A keys' bias moves all scores of a query alike: its gradient is zero.
    assert all(name.endswith("key.bias") for name in unchanged())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_every_peer_sees_the_images_that_ours_standardises():
    raw = raw_images(TINY, 2, "cpu")
    standardised = peers.IMPLEMENTATIONS["ours"].classifier(TINY).adapter.standardise(raw, None)
    channels_last = peers.IMPLEMENTATIONS["lucidrains"].images(raw, TINY)
    channels_first = peers.IMPLEMENTATIONS["transformers"].images(raw, TINY)
    torch.testing.assert_close(channels_last, standardised)
    torch.testing.assert_close(channels_first, standardised.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", FAMILY)
def test_flops_are_those_that_transformers_spends(name):
    config = as_transformers(FAMILY[name])
    implementation = peers.IMPLEMENTATIONS["transformers"]
    network, module = implementation.classifier(config), implementation.cross_attend(config)
    images = implementation.images(raw_images(config, 1, "cpu"), config)
    tokens = module.tokens(images)
    for counted, inputs, expected in (
        (network, images, implementation.flops(config)),
        (module, tokens, implementation.cross_attend_flops(config)),
    ):
        counted.requires_grad_(False).eval()
        with FlopCounterMode(display=False) as counter:
            counted(inputs)
        assert counter.get_total_flops() == expected


def test_lucidrains_is_built_as_the_paper_s_model_at_its_own_widths():
    with torch.device("meta"):
        network = peers.IMPLEMENTATIONS["lucidrains"].classifier(PRESETS["imagenet"])
    assert num_parameters(network) == 228_574_460
    # 8 × (cross-attend 64 wide with its MLP + 6 self-attends): by hand from the shapes.
    tokens, latents, width, head = 224 * 224, 512, 1024, 64
    mlp = 2 * latents * width * (8 + 4) * width
    cross = 2 * (2 * latents * width * head + 2 * tokens * 261 * head + 2 * latents * tokens * head)
    itself = 2 * latents * width * 4 * width + 4 * latents * latents * width
    expected = 8 * (cross + mlp + 6 * (itself + mlp)) + 2 * width * 1000
    assert peers.IMPLEMENTATIONS["lucidrains"].flops(PRESETS["imagenet"]) == expected


def test_memory_tells_dense_tokens_from_separable_ones():
    config = as_transformers(resized(TINY, 256))
    dense_array = 256 * 256 * 261 * 4
    theirs = do(job("memory", config, implementation="transformers"))["bytes"]
    fused = do(job("memory", config, path="fused"))["bytes"]
    separable = do(job("memory", config, path="separable"))["bytes"]
    assert 3 * dense_array < theirs < 20 * dense_array
    assert 3 * dense_array < fused < 20 * dense_array
    assert separable < dense_array / 2


# --- disagreement ---


@pytest.fixture
def spoilt_weights(monkeypatch):
    """One weight of ours is a little off."""
    carry_over = peers.carry_over

    def spoil(network, config):
        ours = carry_over(network, config)
        with torch.no_grad():
            ours.encoder.cross_attends[0].value.weight[0, 0] += 1.0
        return ours

    monkeypatch.setattr(peers, "carry_over", spoil)


def test_nothing_is_compared_if_the_outputs_disagree(spoilt_weights, console):
    asked = []

    def ask(job):
        asked.append(job.task)
        return do(job)

    with pytest.raises(DisagreementError, match="disagree on tiny") as refused:
        bench_model(OPTIONS, console, ask=ask)
    assert isinstance(refused.value, GateRefusedError)
    assert asked == ["machine", "agreement"]


def test_a_disagreement_exits_1_in_one_line(spoilt_weights, here, capfd):
    assert main(["bench", "model", "--preset", "tiny", "--vs", "transformers"]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[-1].startswith("perceiver bench: ours and transformers disagree")


def test_logits_that_are_not_numbers_disagree(console):
    def ask(job):
        return do(job) if job.task == "machine" else {"status": "ok", "errors": {"auto": nan}}

    nan = float("nan")
    with pytest.raises(DisagreementError):
        bench_model(OPTIONS, console, ask=ask)


# --- rows ---


class Told:
    """Answers from a table of seconds by (label, batch size), one after the other."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def __call__(self, job):
        if job.task == "machine":
            return {
                "status": "ok", "device": "cuda", "precision": "bf16",
                "matmul_flops_per_second": 1e12,
            }  # fmt: skip
        label = Variant(implementation=job.implementation, path=job.path).label
        self.asked.append((label, job.batch_size))
        told = self.seconds[label, job.batch_size].pop(0)
        if isinstance(told, dict):
            return told
        return {
            "status": "ok", "seconds": told, "flops": 7 * job.batch_size, "parameters": 3,
            "peak_bytes": 5, "bytes_above_model": 4,
        }  # fmt: skip


TRAIN = dataclasses.replace(OPTIONS, peers=("lucidrains",), work=("train",))
NO_MEMORY = {"status": "out_of_memory"}


def rows_of(told, console, **changes):
    result = bench_model(dataclasses.replace(TRAIN, **changes), console, ask=told)
    return {row["label"]: row for row in result["rows"]}, result


def test_batches_grow_until_the_rate_falls_or_memory_ends(console):
    told = Told(
        {
            ("ours", 16): [16 / 100], ("ours", 32): [32 / 130], ("ours", 64): [64 / 125],
            ("ours", 128): [128 / 120],
            ("lucidrains", 16): [16 / 10], ("lucidrains", 32): [NO_MEMORY],
        }
    )  # fmt: skip
    rows, _ = rows_of(told, console)
    # 125 is within 5 % of 130, 120 is not: 256 isn't tried.
    assert told.asked == [("ours", n) for n in (16, 32, 64, 128)] + [
        ("lucidrains", 16), ("lucidrains", 32)
    ]  # fmt: skip
    assert rows["ours"]["batch_size"] == 32
    assert rows["ours"]["images_per_second"] == pytest.approx(130)
    assert [step["batch_size"] for step in rows["ours"]["sweep"]] == [16, 32, 64, 128]
    assert rows["lucidrains"]["batch_size"] == 16
    assert rows["lucidrains"]["status"] == "ok"
    assert rows["lucidrains"]["vs_ours"] == pytest.approx(10 / 130)


def test_rounds_repeat_the_best_batch_in_turn_and_ratios_are_within_rounds(console):
    told = Told(
        {
            ("ours", 1): [1.0], ("ours", 2): [1.0, 4.0, 2.0],
            ("lucidrains", 1): [4.0], ("lucidrains", 2): [4.0, 20.0, 5.0],
        }
    )  # fmt: skip
    rows, _ = rows_of(told, console, rounds=3, batch_sizes=(1, 2))
    assert told.asked[4:] == [("ours", 2), ("lucidrains", 2)] * 2
    assert rows["ours"]["ms_per_step"] == pytest.approx(2000)  # the median of 1, 4 and 2 s
    assert rows["lucidrains"]["ms_per_step"] == pytest.approx(5000)
    assert rows["lucidrains"]["vs_ours"] == pytest.approx(1 / 4)  # of 1/4, 1/5 and 2/5
    assert rows["lucidrains"]["rounds"] == pytest.approx([0.5, 0.1, 0.4])


def test_what_has_no_memory_or_breaks_costs_only_its_row(console, tmp_path):
    broken = {"status": "failed", "error": "RuntimeError: no kernel", "traceback": "…"}
    told = Told({("ours", 1): [NO_MEMORY], ("lucidrains", 1): [broken]})
    rows, result = rows_of(told, console, batch_sizes=(1, 2))
    assert rows["ours"]["status"] == "out_of_memory"
    assert rows["ours"]["images_per_second"] is None
    assert result["failed"] == 1
    result["machine"] |= do(job("machine"))
    report(result, console)
    printed = (tmp_path / "console.txt").read_text()
    assert "out of memory" in printed
    assert "failed: train · lucidrains: RuntimeError: no kernel" in printed


def test_memory_is_a_line_through_the_sizes_that_fit(console, tmp_path):
    def ask(job):
        if job.task != "memory":
            return do(job)
        side = job.config["input"]["height"]
        if job.implementation == "transformers" and side == 40:
            return NO_MEMORY
        factor = {"separable": 10, "factored": 200, "fused": 300, "auto": 900}[job.path]
        return {"status": "ok", "bytes": 7000 + factor * side * side}

    options = dataclasses.replace(OPTIONS, work=("memory",), memory_sides=(10, 20, 40))
    result = bench_model(options, console, ask=ask)
    rows = {row["label"]: row for row in result["memory"]}
    assert list(rows) == ["ours, separable", "ours, factored", "ours, fused", "transformers"]
    assert rows["ours, separable"]["bytes_per_token"] == pytest.approx(10)
    assert rows["ours, separable"]["r_squared"] == pytest.approx(1)
    assert rows["transformers"]["status"] == "out_of_memory"
    assert rows["transformers"]["bytes_per_token"] == pytest.approx(900)
    assert [size["tokens"] for size in rows["transformers"]["sizes"]] == [100, 400]
    report(result, console)
    assert "bytes per token" in (tmp_path / "console.txt").read_text()


def test_a_row_for_every_attention_path_of_ours():
    assert ("auto", *PATHS) == ATTENTION_PATHS
    labels = [row.label for row in variants.variants((), compile=False, paths=True)]
    assert labels == ["ours", *(f"ours, {path}" for path in PATHS)]
    pairs = [(v.label, v.compiled) for v in variants.variants((), compile=True, paths=False)]
    assert pairs == [("ours", False), ("ours", True)]


def test_a_row_for_every_share_of_activation_checkpointing_in_training(console):
    asked = []

    def ask(job: Job) -> jobs.Answer:
        asked.append((job.task, job.checkpointed))
        return do(job)

    options = model.read_options(
        preset_name="io-imagenet-conv", vs="none", device="cpu", precision="float32",
        batch_sizes="1", work="train,inference", rounds=1, compile=False, paths=False,
        checkpointed="1,0.25",
    )  # fmt: skip
    options = dataclasses.replace(options, config=TINY, seconds=0.01)
    rows = bench_model(options, console, ask=ask)["rows"]
    assert [(row["work"], row["label"]) for row in rows] == [
        ("train", "ours"),
        ("train", "ours, checkpointed 0.25"),
        ("train", "ours, checkpointed 1"),
        ("inference", "ours"),
    ]
    assert [share for task, share in asked if task == "train"] == [0.0, 0.25, 1.0]


def test_checkpointed_self_attends_keep_their_inputs_alone_and_learn_the_same():
    network = peers.IMPLEMENTATIONS["ours"].classifier(TINY).train()
    images = raw_images(TINY, 2, "cpu")
    kept, gradients = [], []
    for share in (0.0, 0.5, 1.0):
        network.encoder.checkpointed_share = share
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = network(images).square().sum()
        loss.backward()
        kept.append(total)
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 3
    for others in gradients[1:]:
        for expected, gradient in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(gradient, expected)


# --- workers ---


def worker_that(tmp_path: Path, monkeypatch, script: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(program))


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("kill -9 $$", "out_of_memory"),
        ("exit 3", "failed"),
        ("exit 0", "failed"),
        ('cat > /dev/null; echo noise; echo \'{"status": "ok"}\'', "ok"),
    ],
)
def test_whatever_becomes_of_a_worker_there_is_an_answer(tmp_path, monkeypatch, script, status):
    worker_that(tmp_path, monkeypatch, script)
    assert ask_worker(job("train"))["status"] == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("shapes\ndiffer"), "failed"),
    ],
)
def test_an_exception_is_an_answer(monkeypatch, error, status):
    def raising(*_):
        raise error

    monkeypatch.setattr(worker, "raw_images", raising)
    answer = do(job("inference"))
    assert answer["status"] == status
    if status == "failed":
        assert answer["error"] == "RuntimeError: shapes differ"
        assert "raising" in answer["traceback"]


def test_time_is_of_at_least_three_steps_and_the_seconds_asked_for():
    steps = []
    assert len(machine.time_steps(lambda: steps.append(None), "cpu", 0.0, 1.0)) == 3
    assert len(steps) == 3
    times = machine.time_steps(lambda: time.sleep(0.001), "cpu", 0.01, 0.001)
    assert len(times) == 10 and sum(times) >= 0.01
    assert machine.warm_up(lambda: time.sleep(0.002), "cpu") >= 0.002


# --- bad input ---


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--preset", "imagent"], "--preset imagent: no preset 'imagent': did you mean 'imagenet'"),
        (["--preset", "modelnet40"], "--preset modelnet40: not a classifier of images; those are"),
        (["--vs", "timm"], "--vs timm: no such peer; known: transformers, lucidrains, none"),
        (
            ["--preset", "imagenet", "--vs", "transformers"],
            "--vs transformers: has no such model; of the presets it has io-imagenet-fourier",
        ),
        (["--device", "tpu"], "--device tpu: must be one of auto, cpu, cuda"),
        (["--precision", "fp8"], "--precision fp8: must be one of auto, float32, bf16"),
        (["--batch-sizes", "1,zwei"], "--batch-sizes 1,zwei: must be integers of at least 1"),
        (["--batch-sizes", "0"], "--batch-sizes 0: must be integers of at least 1"),
        (["--checkpointed", "0.5,2"], "--checkpointed 0.5,2: must be shares above 0"),
        (["--work", "training"], "--work training: must be one of train, inference, cross-attend"),
        (["--work", ","], "--work: names nothing"),
        (
            ["--preset", "io-imagenet-conv", "--work", "memory"],
            "--work memory: needs a preset of pixels with Fourier features, not io-imagenet-conv",
        ),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_one_line(capfd, args, told):
    assert main(["bench", "model", *args]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("perceiver bench: ") and told in line


def test_a_peer_that_is_not_installed_is_told_how_to_get(monkeypatch, capfd):
    monkeypatch.setattr(variants, "find_spec", lambda name: None)
    assert main(["bench", "model"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "transformers is not installed: pip install 'perceiver-pipeline[bench]'" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_absent_is_told(here, capfd):
    assert main(["bench", "model", "--preset", "tiny", "--device", "cuda"]) == 2
    assert "--device cuda: torch finds no CUDA device here" in capfd.readouterr().err


def test_peers_are_those_with_a_model_of_the_preset():
    has = {
        name: [peer for peer in variants.PEERS if variants.has_model(peer, config)]
        for name, config in PRESETS.items()
    }
    assert has["imagenet"] == ["lucidrains"]
    assert has["io-imagenet-fourier"] == ["transformers", "lucidrains"]
    assert has["io-imagenet-learned"] == has["io-imagenet-conv"] == ["transformers"]
    assert has["imagenet-cross-attends-first"] == []
    assert has["io-mlm-bytes"] == has["modelnet40"] == []


def test_help_imports_nothing_heavy():
    code = """
import sys
from pipeline.cli import main
try:
    main(["bench", "model", "--help"])
except SystemExit as end:
    assert end.code == 0, end.code
found = {"torch", "ray", "transformers", "rich", "numpy"} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout


def test_the_driver_itself_needs_no_torch():
    code = "import sys, pipeline.bench.model, pipeline.bench.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_json_may_stand_before_or_behind_the_subject(here, capfd):
    args = ["--preset", "tiny", "--vs", "none", "--no-compile", "--work", "inference"]
    for words in (["bench", "--json", "model"], ["bench", "model", "--json"]):
        assert main([*words, *args, "--device", "cpu"]) == 0
        result = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert [row["label"] for row in result["rows"]] == ["ours"]


def test_console_shows_a_table_without_json(here, capfd):
    args = ["--preset", "tiny", "--vs", "none", "--no-compile", "--work", "inference"]
    assert main(["bench", "model", *args, "--device", "cpu"]) == 0
    assert "images/s" in capfd.readouterr().out
