"""`perceiver bench model`: what it measures, and that it compares only what agrees."""

import json

import pytest
import torch
from small_bench import FAMILY, OPTIONS, TINY, job
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import model, peers
from benchmarks.images import raw_images
from benchmarks.model import DisagreementError, bench_model
from benchmarks.report import report
from benchmarks.variants import PATHS, as_transformers, resized
from benchmarks.worker import do, inference_step, training_step
from perceiver_model.families.presets import PRESETS
from perceiver_model.flops import num_parameters
from pipeline.cli.main import main
from pipeline.errors import GateRefusedError

pytestmark = pytest.mark.usefixtures("short_bench")


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
    for message in ("training step", "× ours", "inference", "MFU %", "heavier model", "agree with"):
        assert message in printed


def test_the_verb_measures_in_processes_of_their_own(monkeypatch, capfd):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    args = ["--preset", "tiny", "--no-compile", "--vs", "none", "--work", "inference"]
    assert main(["bench", "model", *args, "--device", "cpu", "--json"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    (row,) = result["rows"]
    assert row["label"] == "ours" and row["images_per_second"] > 0
    assert result["machine"]["matmul_size"] == 2048  # not the size in this process
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


def test_a_disagreement_exits_1_in_one_line(spoilt_weights, bench_here, capfd):
    assert main(["bench", "model", "--preset", "tiny", "--vs", "transformers"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(
        "perceiver bench: ours and transformers disagree"
    )


def test_logits_that_are_not_numbers_disagree(console):
    def ask(job):
        return do(job) if job.task == "machine" else {"status": "ok", "errors": {"auto": nan}}

    nan = float("nan")
    with pytest.raises(DisagreementError):
        bench_model(OPTIONS, console, ask=ask)
