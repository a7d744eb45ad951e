"""`perceiver bench model`: the rows of its tables."""

import dataclasses
import time

import pytest
import torch
from small_bench import OPTIONS, TINY, job

from benchmarks import jobs, model, peers, variants
from benchmarks.images import raw_images
from benchmarks.jobs import Job
from benchmarks.model import bench_model
from benchmarks.report import report
from benchmarks.variants import PATHS, Variant
from benchmarks.worker import do
from perceiver_model.attention.multi_head import ATTENTION_PATHS
from pipeline.errors import UserError

pytestmark = pytest.mark.usefixtures("short_bench")


class ScriptedAnswers:
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
        answer = self.seconds[label, job.batch_size].pop(0)
        if isinstance(answer, dict):
            return answer
        return {
            "status": "ok", "seconds": answer, "flops": 7 * job.batch_size, "parameters": 3,
            "peak_bytes": 5, "bytes_above_model": 4,
        }  # fmt: skip


TRAIN = dataclasses.replace(OPTIONS, peers=("lucidrains",), work=("train",))
NO_MEMORY = {"status": "out_of_memory"}


def rows_of(answers, console, **changes):
    result = bench_model(dataclasses.replace(TRAIN, **changes), console, ask=answers)
    return {row["label"]: row for row in result["rows"]}, result


def test_batches_grow_until_the_rate_falls_or_memory_ends(console):
    answers = ScriptedAnswers(
        {
            ("ours", 16): [16 / 100], ("ours", 32): [32 / 130], ("ours", 64): [64 / 125],
            ("ours", 128): [128 / 120],
            ("lucidrains", 16): [16 / 10], ("lucidrains", 32): [NO_MEMORY],
        }
    )  # fmt: skip
    rows, _ = rows_of(answers, console)
    # 125 is within 5 % of 130, 120 is not: 256 isn't tried.
    assert answers.asked == [("ours", n) for n in (16, 32, 64, 128)] + [
        ("lucidrains", 16), ("lucidrains", 32)
    ]  # fmt: skip
    assert rows["ours"]["batch_size"] == 32
    assert rows["ours"]["images_per_second"] == pytest.approx(130)
    assert [step["batch_size"] for step in rows["ours"]["sweep"]] == [16, 32, 64, 128]
    assert rows["lucidrains"]["batch_size"] == 16
    assert rows["lucidrains"]["status"] == "ok"
    assert rows["lucidrains"]["vs_ours"] == pytest.approx(10 / 130)


def test_rounds_repeat_the_best_batch_in_turn_and_ratios_are_within_rounds(console):
    answers = ScriptedAnswers(
        {
            ("ours", 1): [1.0], ("ours", 2): [1.0, 4.0, 2.0],
            ("lucidrains", 1): [4.0], ("lucidrains", 2): [4.0, 20.0, 5.0],
        }
    )  # fmt: skip
    rows, _ = rows_of(answers, console, rounds=3, batch_sizes=(1, 2))
    assert answers.asked[4:] == [("ours", 2), ("lucidrains", 2)] * 2
    assert rows["ours"]["ms_per_step"] == pytest.approx(2000)  # the median of 1, 4 and 2 s
    assert rows["lucidrains"]["ms_per_step"] == pytest.approx(5000)
    assert rows["lucidrains"]["vs_ours"] == pytest.approx(1 / 4)  # of 1/4, 1/5 and 2/5
    assert rows["lucidrains"]["rounds"] == pytest.approx([0.5, 0.1, 0.4])


def test_what_has_no_memory_or_breaks_costs_only_its_row(console, tmp_path):
    broken = {"status": "failed", "error": "RuntimeError: no kernel", "traceback": "…"}
    answers = ScriptedAnswers({("ours", 1): [NO_MEMORY], ("lucidrains", 1): [broken]})
    rows, result = rows_of(answers, console, batch_sizes=(1, 2))
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
    labels = [row.label for row in variants.variants((), compile="none", paths=True)]
    assert labels == ["ours", *(f"ours, {path}" for path in PATHS)]
    pairs = [(v.label, v.compiled) for v in variants.variants((), compile="all", paths=False)]
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


def test_quick_compiles_only_our_training_step_and_leaves_out_what_has_no_time(console):
    options = model.read_options(
        preset_name="io-imagenet-conv", vs="none", device="cpu", precision="float32",
        batch_sizes=None, work=None, rounds=1, compile=True, paths=False, quick=True,
    )  # fmt: skip
    options = dataclasses.replace(options, config=TINY, peers=("lucidrains",))
    asked = []

    def ask(job: Job) -> jobs.Answer:
        if job.task == "machine":
            return do(job)
        asked.append((job.task, job.implementation, job.compiled, job.batch_size, job.seconds))
        return {"status": "out_of_time"}

    rows = bench_model(options, console, ask=ask)["rows"]
    assert asked == [
        ("train", "ours", False, 1, 0.5), ("train", "ours", True, 1, 0.5),
        ("train", "lucidrains", False, 1, 0.5),
        ("inference", "ours", False, 1, 0.5), ("inference", "lucidrains", False, 1, 0.5),
    ]  # fmt: skip
    assert {row["status"] for row in rows} == {"out_of_time"}


def test_a_job_is_killed_when_its_time_is_over():
    asked = job("train")
    assert jobs.ask_until(time.monotonic() + 0.2)(asked) == {"status": "out_of_time"}
    assert jobs.ask_until(time.monotonic() - 1)(asked) == {"status": "out_of_time"}


@pytest.mark.parametrize(
    "given", [{"work": "train"}, {"rounds": 2}, {"paths": True}, {"checkpointed": "1"}]
)
def test_quick_chooses_what_it_measures(given):
    chosen = {"work": None, "rounds": 1, "paths": False, "batch_sizes": None, **given}
    with pytest.raises(UserError, match=f"own choice for --{next(iter(given))}"):
        model.read_options(
            preset_name="imagenet", vs="none", device="cpu", precision="auto", compile=True,
            quick=True, **chosen,
        )  # fmt: skip
