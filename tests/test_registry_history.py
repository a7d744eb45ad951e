"""Promotions that are only tried, judged on a pinned set or refused for a class; the history."""

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gate_bench import TRAIN, VALIDATION, Bench, anew
from gate_runs import CLASSES, NAME, some_rows, track

from pipeline.cli.main import main
from pipeline.config.tree import Config
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry.history import history, list_models
from pipeline.registry.rollback import rollback
from pipeline.runs.console import Console
from shards import ShardSet


def everything_in(bench: Bench) -> tuple[list[str], dict[str, bytes]]:
    """All rows of MLflow's database, and all files of its store."""
    with closing(sqlite3.connect(bench.output / "mlflow.db")) as database:
        rows = list(database.iterdump())
    store = bench.output / "mlartifacts"
    files = [path for path in store.rglob("*") if path.is_file()]
    return rows, {str(path): path.read_bytes() for path in files}


def of_class_0(bench: Bench) -> dict[str, Any]:
    """Weights of a model that answers the first class whatever it is given."""
    weights = {name: tensor.clone() for name, tensor in bench.made["good"].items()}
    weights["head.output.weight"][:] = 0.0
    weights["head.output.bias"][0] = 1e3
    return weights


# --- dry runs ---


def test_a_dry_run_judges_and_writes_nothing(bench: Bench) -> None:
    poor, good = bench.run("poor"), bench.run("good")
    before = everything_in(bench)
    first = bench.promote(poor, dry_run=True)
    assert (first["version"], first["p_value"], first["skipped"]) == (None, None, False)
    assert everything_in(bench) == before
    bench.promote(poor)
    before = everything_in(bench)
    tried = bench.promote(good, dry_run=True)
    assert bench.promote(poor, dry_run=True)["skipped"]
    with pytest.raises(GateRefusedError, match="need 100 such wins"):
        bench.promote(good, dry_run=True, alpha=1e-30)
    assert everything_in(bench) == before
    done = bench.promote(good)
    assert {**done, "version": None} == tried
    assert everything_in(bench) != before


def test_a_dry_run_leaves_an_unfinished_version_alone(bench: Bench) -> None:
    good = bench.run("good")
    bench.promote(bench.run("poor"))
    bench.promote(good)
    bench.client.delete_model_version_tag(NAME, "2", "perceiver.promoted")
    bench.client.set_registered_model_alias(NAME, "champion", "1")
    before = everything_in(bench)
    assert bench.promote(good, dry_run=True)["version"] is None
    with pytest.raises(GateRefusedError):
        bench.promote(good, dry_run=True, min_gain=0.99)
    assert everything_in(bench) == before
    assert bench.promote(good)["version"] == "2"


# --- pinned sets ---


def test_a_pinned_set_judges_and_no_other_one(bench: Bench) -> None:
    digest = ShardSet.open(bench.first.shards_folder).digest
    result = bench.promote(bench.run("poor"), set_digest=digest[:12])
    assert result["set_digest"] == digest
    assert bench.client.get_model_version(NAME, "1").tags["perceiver.judged_digest"] == digest
    more = anew(bench, "more", TRAIN + some_rows(600, 700), VALIDATION, set_digest=digest)
    run = bench.run("good", more)
    with pytest.raises(UserError, match=rf"pins the set {digest}; name that set with --set"):
        bench.promote(run)
    result = bench.promote(run, judged_on=bench.first.shards_folder)
    assert (result["set_digest"], result["samples"]) == (digest, len(VALIDATION))
    tags = bench.client.get_model_version(NAME, "2").tags
    assert tags["perceiver.judged_digest"] == digest
    assert tags["perceiver.shards_digest"] == ShardSet.open(more.shards_folder).digest != digest
    with pytest.raises(UserError, match=r"set_digest=00000000z: .* 8 to 64 hexadecimal digits"):
        bench.promote(run, set_digest="00000000z")


def test_what_a_model_was_trained_on_is_known_in_another_set_too(bench: Bench) -> None:
    held = anew(bench, "held", VALIDATION[:60], TRAIN[:50] + VALIDATION[60:])
    result = bench.promote(bench.run("good"), judged_on=held.shards_folder)
    assert (result["samples"], result["left_out"]) == (60, 50)


def test_a_set_of_other_input_does_not_judge(bench: Bench) -> None:
    wider = anew(bench, "wider", TRAIN, VALIDATION, numeric=("y",))
    with pytest.raises(UserError, match=r"holds other input than the model takes .*numeric"):
        bench.promote(bench.run("good"), judged_on=wider.shards_folder)


# --- parts that got worse ---


def worse_for_a_class(bench: Bench, **registry: Any) -> Config:
    """A training whose model is better than the champion of `of_class_0`, but for that class."""
    bench.promote(bench.run(of_class_0(bench)))
    return anew(bench, "second", TRAIN, VALIDATION, **registry)


def never_class_0(bench: Bench) -> dict[str, Any]:
    weights = {name: tensor.clone() for name, tensor in bench.made["good"].items()}
    weights["head.output.weight"][0] = 0.0
    weights["head.output.bias"][0] = -1e4
    return weights


def test_a_class_that_got_worse_is_named(bench: Bench) -> None:
    config = worse_for_a_class(bench)
    lost = sum(row["label"] == CLASSES[0] for row in VALIDATION)
    result = bench.promote(bench.run(never_class_0(bench), config))
    (one,) = result["worse_slices"]
    assert (one["kind"], one["name"], one["samples"]) == ("class", CLASSES[0], lost)
    assert (one["wins"], one["losses"], one["value"], one["champion_value"]) == (0, lost, 0.0, 1.0)
    assert one["p_value"] < 1e-6
    assert (
        f"worse than {NAME} version 1 on class {CLASSES[0]!r}: 0.0000 on {lost} samples, where the "
        f"champion has 1.0000 (0 won, {lost} lost, p = "
    ) in bench.printed
    tags = bench.client.get_model_version(NAME, "2").tags
    assert json.loads(tags["perceiver.worse_slices"]) == [f"class {CLASSES[0]}"]


def test_a_class_that_got_worse_may_refuse_the_model(bench: Bench) -> None:
    config = worse_for_a_class(bench, worse_slices="refuse")
    with pytest.raises(GateRefusedError, match=rf"on class {CLASSES[0]!r}: .*worse_slices=refuse"):
        bench.promote(bench.run(never_class_0(bench), config))
    assert bench.champion == "1"
    assert bench.promote(bench.run("good", config))["version"] == "2"


# --- the history ---


def reigns(bench: Bench, alias: str = "champion") -> list[tuple[str, str]]:
    found = history(bench.client, NAME, alias)["champions"]
    for before, after in pairwise(found):
        assert before["since"] <= before["until"] == after["since"]
    assert not found or found[-1]["until"] is None
    return [(each["version"], each["by"]) for each in found]


def test_the_history_says_who_was_champion_when_and_by_what(bench: Bench) -> None:
    runs = [bench.run(weights) for weights in ("untrained", "poor", "good")]
    results = [bench.promote(run) for run in runs]
    bench.promote(runs[1], alias="other")
    assert reigns(bench) == [("1", "promote"), ("2", "promote"), ("3", "promote")]
    assert reigns(bench, "other") == [("4", "promote")]
    found = history(bench.client, NAME)
    assert found["version"] == "3"
    for each, result, run in zip(found["champions"], results, runs, strict=True):
        assert (each["metric"], each["run_id"], each["split"]) == ("accuracy", run, "validation")
        for key, name in (
            ("value", "accuracy"), ("champion_value", "champion_accuracy"), ("samples", "samples"),
            ("p_value", "p_value"), ("set_digest", "set_digest"),
        ):  # fmt: skip
            assert each[key] == result[name]
    for _ in range(2):
        rollback(bench.client, Console(), name=NAME, alias="champion")
    bench.promote(runs[2])
    rollback(bench.client, Console(), name=NAME, alias="champion")
    assert reigns(bench)[3:] == [
        ("2", "rollback"), ("1", "rollback"), ("5", "promote"), ("1", "rollback"),
    ]  # fmt: skip
    assert history(bench.client, NAME)["version"] == "1"


def test_versions_of_earlier_releases_and_of_other_programs_are_in_it(bench: Bench) -> None:
    bench.promote(bench.run("poor"))
    tag = bench.client.set_model_version_tag
    tag(NAME, "1", "perceiver.promoted", "2026-01-02T03:04:05Z")
    tag(NAME, "1", "perceiver.accuracy", "good")
    bench.client.create_model_version(NAME, "somewhere")
    bench.client.set_registered_model_alias(NAME, "champion", "2")
    found = history(bench.client, NAME)
    (only,) = found["champions"]
    assert (only["since"], only["value"]) == ("2026-01-02T03:04:05.000Z", None)
    assert found["version"] == "2"


def test_all_models_are_listed_with_their_aliases(bench: Bench) -> None:
    assert list_models(bench.client) == {"models": []}
    poor = bench.run("poor")
    bench.promote(poor)
    bench.promote(poor, name="another", alias="trial")
    bench.promote(bench.run("good"))
    assert list_models(bench.client)["models"] == [
        {"name": "another", "aliases": {"trial": "1"}, "versions": 1, "latest": "1"},
        {"name": NAME, "aliases": {"champion": "2"}, "versions": 2, "latest": "2"},
    ]


def test_history_and_list_from_the_command_line(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.promote(bench.run("poor"))
    place = ["--output", str(bench.output)]
    track(bench.first.tracking_uri)
    assert main(["registry", "history", NAME, *place]) == 0
    assert "promote" in (shown := capfd.readouterr().out) and "120 of" in shown
    assert main(["registry", "history", NAME, "--json", *place]) == 0
    assert len(json.loads(capfd.readouterr().out.splitlines()[-1])["champions"]) == 1
    assert main(["registry", "list", *place]) == 0
    assert "champion: 1" in capfd.readouterr().out
    good = bench.run("good")
    assert main(["promote", good, "--dry-run", *place]) == 0
    assert f"models:/{NAME}@champion would be this run's model: accuracy" in capfd.readouterr().out
    assert bench.champion == "1"
    for arguments, message in (
        (["history", "rose"], f"rose: there is no such registered model; there are {NAME}"),
        (["history"], "NAME of the registered model is missing"),
        (["list", NAME], "takes no NAME"),
        (["history", "a/b"], "registry.model_name"),
    ):
        assert main(["registry", *arguments, *place]) == 2
        assert message in capfd.readouterr().err
    assert main(["promote", "--rollback", "--name", NAME, "--dry-run", *place]) == 2
    assert "--dry-run: has no effect with --rollback" in capfd.readouterr().err


def test_a_set_is_named_on_the_command_line(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    place = ["--output", str(bench.output)]
    held = anew(bench, "held", VALIDATION[:60], VALIDATION[60:])
    track(bench.first.tracking_uri)
    digest = ShardSet.open(held.shards_folder).digest
    given = ["--set", str(Path(held.shards_folder)), "--set-digest", digest, "--json"]
    assert main(["promote", bench.run("good"), *given, *place]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (result["set_digest"], result["samples"]) == (digest, 60)
