"""The model card of a version: what judged it, with intervals; its licence; and intervals alone."""

from pathlib import Path

import numpy as np
import pytest
from gate_bench import VALIDATION, Bench, anew
from gate_runs import CLASSES, NAME, table_config
from scipy.stats import binom

from pipeline.errors import UserError
from pipeline.registry.intervals import mean_interval, share_interval
from pipeline.registry.model_card import MOST_OF_A_DESCRIPTION
from shards import ShardSet


def card_in(bench: Bench, version: int) -> str:
    folders = sorted(
        (bench.output / "mlartifacts").rglob("model_card.md"), key=lambda path: path.stat().st_ctime
    )
    return Path(folders[version - 1]).read_text()


def test_a_version_has_a_card_beside_it_and_as_its_description(bench: Bench) -> None:
    bench.promote(bench.run("poor"))
    result = bench.promote(bench.run("good"))
    text = card_in(bench, 2)
    digest = ShardSet.open(bench.first.shards_folder).digest
    low, high = result["interval"]
    for line in (
        f"| digest | `{digest}` |",
        "| samples of train | 480 |",
        f"On 120 samples of `validation` of the set `{digest}` that it was not trained on;",
        f"| `accuracy` | {result['accuracy']:.6g} | {low:.4g} to {high:.4g} |",
        f"| of the champion before | {result['champion_accuracy']:.6g} |",
        f"| won and lost | {result['wins']} and {result['losses']} |",
        "| FLOPs of one forward pass of a sample | ",
        "| parameters | ",
        "Licence: none is given (`registry.licence`).",
        "- It has seen only 480 training samples.",
        "- It answers with one of its 3 classes whatever it is given.",
        "also chose its checkpoint",
        "model_name: rows",
    ):
        assert line in text, line
    version = bench.client.get_model_version(NAME, "2")
    assert len(version.description) <= MOST_OF_A_DESCRIPTION
    assert version.description.rstrip() == text[: text.index("\n\n## Configuration")]
    assert low <= result["accuracy"] <= high
    assert float(version.tags["perceiver.accuracy_low"]) == low


def test_a_licence_is_on_the_card_and_a_tag(bench: Bench) -> None:
    config = anew(bench, "free", *bench_rows(), licence="CC-BY-4.0")
    bench.promote(bench.run("good", config))
    assert bench.client.get_model_version(NAME, "1").tags["perceiver.licence"] == "CC-BY-4.0"
    assert "\nLicence: CC-BY-4.0\n" in card_in(bench, 1)
    with pytest.raises(UserError, match="licence"):
        table_config(bench.output, "two", licence="MIT\n# a heading of its own")


def bench_rows():
    from gate_bench import TRAIN

    return TRAIN, VALIDATION


def test_a_class_that_got_worse_is_on_the_card(bench: Bench) -> None:
    weights = {name: tensor.clone() for name, tensor in bench.made["good"].items()}
    weights["head.output.weight"][:] = 0.0
    weights["head.output.bias"][0] = 1e3
    bench.promote(bench.run(weights))
    weights = {name: tensor.clone() for name, tensor in bench.made["good"].items()}
    weights["head.output.weight"][0] = 0.0
    weights["head.output.bias"][0] = -1e4
    bench.promote(bench.run(weights))
    assert f"| class `{CLASSES[0]}` | 0 | 1 | " in card_in(bench, 2)


# --- intervals ---


def test_a_share_s_interval_holds_the_true_share_in_95_of_100_draws():
    random, held = np.random.default_rng(0), 0
    for right in random.binomial(100, 0.9, size=1000):
        low, high = share_interval(int(right), 100)
        held += low <= 0.9 <= high
    assert binom.cdf(held, 1000, 0.95) > 1e-3


def test_a_mean_s_interval_draws_units_whole():
    random = np.random.default_rng(0)
    values = random.normal(size=40)
    alone = mean_interval(values, np.arange(40), is_right_or_wrong=False)
    repeated = mean_interval(
        np.repeat(values, 9), np.repeat(np.arange(40), 9), is_right_or_wrong=False
    )
    assert alone == pytest.approx(repeated)
    assert alone[0] < values.mean() < alone[1]
    right = np.repeat(random.random(40) < 0.8, 9).astype(float)
    together = mean_interval(right, np.repeat(np.arange(40), 9), is_right_or_wrong=True)
    apart = mean_interval(right, np.arange(360), is_right_or_wrong=True)
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert mean_interval(np.array([np.inf, 1.0]), np.arange(2), is_right_or_wrong=False) is None
    assert mean_interval(values[:1], np.arange(1), is_right_or_wrong=False) is None
