"""Which samples decide: those that neither model was trained on, also of sets made anew."""

import shutil

import numpy as np
import pytest
from gate_bench import ROWS, TRAIN, VALIDATION, Bench, anew
from gate_runs import (
    NAME,
    fitted_model,
    new_model,
    shuffled,
    some_rows,
    table_config,
    without_class,
    write_table_set,
)

from pipeline.config.tree import Config
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry.predict import load_model
from shards import ShardSet


def test_what_was_trained_on_is_left_out_after_the_old_set_is_gone(bench: Bench) -> None:
    """The same rows split anew, and 60 new ones: the champion was trained on most of the split."""
    bench.promote(bench.run("good"))
    shutil.rmtree(bench.first.shards_folder)
    rows = shuffled(ROWS + some_rows(600, 660), seed=1)
    config = anew(bench, "second", rows[:500], rows[500:])
    known = [row in TRAIN for row in rows[500:]]
    assert 60 < sum(known) < 140
    with pytest.raises(GateRefusedError, match=rf"on {160 - sum(known)} samples"):
        bench.promote(bench.run("untrained", config))
    assert (
        f"{sum(known)} of 160 samples of the validation split are left out: {NAME} version 1 was "
        "trained on the same content"
    ) in bench.printed
    assert len(load_model(bench.client, f"models:/{NAME}@champion").card.objective.classes) == 3


def test_a_split_that_the_champion_was_trained_on_decides_nothing(bench: Bench) -> None:
    bench.promote(bench.run("poor"))
    config = anew(bench, "turned", VALIDATION + TRAIN[:300], TRAIN[300:])
    good = bench.run("good", config)
    with pytest.raises(UserError, match=r"0 of 180 samples .* at least 5"):
        bench.promote(good)
    assert bench.champion == "1"


def test_nor_does_one_that_the_run_itself_was_trained_on(bench: Bench) -> None:
    run = bench.run("good")
    with pytest.raises(UserError, match="no sample of the train split is left"):
        bench.promote(run, split="train")
    copied = anew(bench, "copied", TRAIN, TRAIN[:100] + VALIDATION)
    result = bench.promote(bench.run("good", copied))
    assert (result["samples"], result["left_out"]) == (120, 100)


def test_rows_that_repeat_each_other_all_count(bench: Bench) -> None:
    """Of four different rows in all, equal ones are not the same: nothing could be compared."""
    rows = [
        {"x": float(60 + 8 * (n % 2)), "y": 0.0, "kind": "rs"[n // 2 % 2],
         "label": ("low", "high")[n % 2]} for n in range(400)
    ]  # fmt: skip
    config = anew(bench, "coarse", rows[:300], rows[300:])
    model = fitted_model(config, ShardSet.open(config.shards_folder), rows[:300])
    bench.promote(bench.run(model.state_dict(), config))
    with pytest.raises(GateRefusedError, match="on 100 samples"):
        bench.promote(bench.run(without_class(model, 0), config))
    assert "100 of 100 rows of the validation split equal training rows" in bench.printed


@pytest.mark.parametrize("set_is_gone", [False, True])
def test_of_a_version_without_a_record_its_set_tells_or_it_is_said(
    bench: Bench, set_is_gone: bool
) -> None:
    bench.promote(bench.run("good"))
    (record,) = (bench.output / "mlartifacts").rglob("trained_on.sha256s")
    record.unlink()
    bench.client.delete_model_version_tag(NAME, "1", "perceiver.weights_sha256")
    if set_is_gone:
        shutil.rmtree(bench.first.shards_folder)
    config = anew(bench, "second", VALIDATION + TRAIN[:300], TRAIN[300:] + some_rows(600, 650))
    left = 230 if set_is_gone else 50
    with pytest.raises(GateRefusedError, match=rf"on {left} samples"):
        bench.promote(bench.run("untrained", config))
    assert ("has no record of its training samples" in bench.printed) is set_is_gone


def grouped(bench: Bench, pattern: str) -> Config:
    """A set whose samples `validation/0` to `validation/119` have groups on their paths."""
    config = table_config(bench.output, "grouped")
    data = config.data.model_copy(update={"group": pattern, "validation": 0.2})
    config = config.model_copy(update={"data": data})
    write_table_set(config, TRAIN, VALIDATION)
    return config


def test_the_samples_of_a_group_decide_as_one(bench: Bench) -> None:
    config = grouped(bench, r"(\d)$")
    bench.promote(bench.run("poor", config))
    result = bench.promote(bench.run("good", config))
    assert result["samples"] == 120
    assert 8 <= result["wins"] <= 10
    assert result["losses"] == 0
    with pytest.raises(GateRefusedError, match=r"of 10 recordings or groups, this run is better"):
        bench.promote(bench.run("poor", config))


def test_too_few_groups_decide_nothing(bench: Bench) -> None:
    config = grouped(bench, r"(\d)\d?\d?$")
    bench.promote(bench.run("poor", config), alpha=0.001)
    good = bench.run("good", config)
    with pytest.raises(UserError, match=r"120 samples of 10 recordings .* needs at least 14"):
        bench.promote(good, alpha=1e-4)


def test_groups_that_no_path_names_are_not_told_apart_and_it_is_said(bench: Bench) -> None:
    config = grouped(bench, "patient")
    bench.promote(bench.run("poor", config))
    assert bench.promote(bench.run("good", config))["wins"] > 10
    assert "data.group=patient names no group on the paths" in bench.printed


def test_a_set_made_anew_with_other_statistics_and_categories_is_compared(bench: Bench) -> None:
    bench.promote(bench.run("poor"))
    later = [{**row, "kind": "u" if row["kind"] == "t" else row["kind"]}
             for row in some_rows(600, 900, odd=False)]  # fmt: skip
    train = TRAIN + later[:200] + [{"x": 90.0, "y": 0.0, "kind": "u", "label": "odd"}]
    config = anew(bench, "second", train, VALIDATION + later[200:])
    shard_set = ShardSet.open(config.shards_folder)
    old = ShardSet.open(bench.first.shards_folder).manifest.config["vocabulary"]
    assert shard_set.manifest.config["vocabulary"]["mean"] != old["mean"]
    result = bench.promote(bench.run(fitted_model(config, shard_set, train).state_dict(), config))
    assert result["samples"] == 220
    # What the champion has right follows from its own reading of the raw rows.
    predictor = load_model(bench.client, f"models:/{NAME}/1")
    rows = VALIDATION + later[200:]
    answers = [prediction.label for prediction in predictor.predict(rows)]
    right = [answer == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert result["champion_accuracy"] == pytest.approx(np.mean(right))


def test_a_set_with_one_column_more_is_compared_and_its_rows_known_again(bench: Bench) -> None:
    bench.promote(bench.run("poor"))
    rows = shuffled(ROWS + some_rows(600, 700), seed=2)
    config = anew(bench, "wider", rows[:500], rows[500:], numeric=("y", "x"))
    shard_set = ShardSet.open(config.shards_folder)
    model = fitted_model(config, shard_set, rows[:500])
    result = bench.promote(bench.run(model.state_dict(), config))
    assert result["left_out"] == sum(row in TRAIN for row in rows[500:]) > 100
    narrow = anew(bench, "narrow", TRAIN, VALIDATION)
    with pytest.raises(UserError, match=r"takes other input than this run .*numeric column 'y'"):
        bench.promote(bench.run("good", narrow))


def test_rows_with_a_category_that_only_the_champion_may_know_are_left_out(bench: Bench) -> None:
    bench.promote(bench.run("good"))
    train = [row for row in TRAIN if row["kind"] != "s"]
    config = anew(bench, "fewer", train, VALIDATION)
    untrained = new_model(config, ShardSet.open(config.shards_folder)).state_dict()
    unknown = sum(row["kind"] == "s" for row in VALIDATION)
    with pytest.raises(GateRefusedError, match=rf"on {120 - unknown} samples"):
        bench.promote(bench.run(untrained, config))
    assert f"{unknown} rows hold a category that the set does not know" in bench.printed


def test_a_champion_of_fewer_classes_is_compared_by_their_names(bench: Bench) -> None:
    train, validation = (
        [row for row in rows if row["label"] != "odd"] for rows in (TRAIN, VALIDATION)
    )
    fewer = anew(bench, "fewer", train, validation, classes=("low", "high"))
    model = fitted_model(fewer, ShardSet.open(fewer.shards_folder), train)
    first = bench.promote(bench.run(model.state_dict(), fewer))
    result = bench.promote(bench.run("good"))
    right = round(first["accuracy"] * len(validation))
    assert result["champion_accuracy"] == pytest.approx(right / len(VALIDATION))
    assert "does not know the classes odd: their samples count as wrong" in bench.printed
    with pytest.raises(GateRefusedError):
        bench.promote(bench.run(without_class(model, 0), fewer))
    assert "also knows the classes odd, which this run does not have" in bench.printed
