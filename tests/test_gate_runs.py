"""The gate on real models and sets: unseen samples only, sets made anew, what is not finite."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gate_bench import VALIDATION, Bench, spoiled
from gate_runs import (
    NAME,
    new_model,
    replace_weights,
    track,
    write_run,
)

from pipeline.cli.main import main
from pipeline.config.tree import Config, RegistryConfig
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry import package
from pipeline.registry.judging import judge
from pipeline.registry.outcomes import Outcomes
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.objectives.classification import Classification
from shards import ShardSet


def test_a_better_model_takes_the_alias_and_the_result_says_by_what(bench: Bench) -> None:
    first = bench.promote(bench.run("poor"))
    better = bench.promote(bench.run("good"))
    assert first["champion_accuracy"] is first["p_value"] is first["wins"] is None
    assert (better["samples"], better["left_out"]) == (len(VALIDATION), 0)
    gained = (better["wins"] - better["losses"]) / len(VALIDATION)
    assert better["accuracy"] - better["champion_accuracy"] == pytest.approx(gained)
    assert gained > 0.1
    assert better["p_value"] < 1e-3
    tags = bench.client.get_model_version(NAME, "2").tags
    assert tags["perceiver.wins"] == str(better["wins"])
    assert tags["perceiver.champion_version"] == "1"


def test_a_gain_that_may_be_chance_is_refused_with_its_figures(bench: Bench) -> None:
    bench.promote(bench.run("poor"))
    good = bench.run("good")
    with pytest.raises(GateRefusedError) as refused:
        bench.promote(good, alpha=1e-30)
    text = str(refused.value)
    assert re.search(r"has accuracy 0\.\d{4} on 120 samples, where the champion has 0\.\d{4}", text)
    assert re.search(r"\d+ that only this run has right, \d+ that only the champion", text)
    assert "registry.alpha=1e-30 need 100 such wins beside 0 losses" in text
    with pytest.raises(GateRefusedError, match=r"registry\.min_gain=0\.99 .* need 119 such wins"):
        bench.promote(good, min_gain=0.99, alpha=1.0)
    assert bench.champion == "1"
    assert bench.promote(good, alpha=1.0)["version"] == "2"


def test_of_two_that_are_exactly_as_good_the_champion_stays(bench: Bench) -> None:
    """Whatever the rules ask for: the other run's weights are the champion's own."""
    bench.promote(bench.run("good"))
    with pytest.raises(GateRefusedError, match=r": 0 that only this run has right, 0 that only"):
        bench.promote(bench.run("good"), alpha=1.0, min_gain=0.0)
    assert bench.champion == "1"
    assert len(bench.client.search_model_versions(f"name='{NAME}'")) == 1


def test_models_of_two_objectives_are_not_compared(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ranking(Classification):
        name = "rank"

    bench.promote(bench.run("poor"))
    good = bench.run("good")
    monkeypatch.setitem(OBJECTIVES, "rank", Ranking)
    (card,) = (bench.output / "mlartifacts").rglob("card.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"objective": "rank"}))
    with pytest.raises(UserError, match="is for the objective 'rank', this run for 'classify'"):
        bench.promote(good)
    assert bench.champion == "1"


def test_a_package_that_is_not_installed_is_named_before_anything_is_evaluated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.run("good")
    monkeypatch.setattr(package, "MODEL_REQUIREMENTS", ("numpy", "not-installed-1", "no-such-2"))
    with pytest.raises(UserError) as refused:
        bench.promote(run)
    assert str(refused.value) == (
        "a registered model requires not-installed-1, no-such-2, which is not installed here: run "
        "'pip install not-installed-1 no-such-2', then promote again"
    )
    assert "evaluating" not in bench.text.read_text()
    assert not bench.client.search_registered_models()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_run_that_is_not_finite_is_refused_even_without_a_champion(
    bench: Bench, value: float
) -> None:
    run = bench.run("good")
    checkpoint = Path(bench.client.get_run(run).data.tags["perceiver.checkpoint"])
    replace_weights(checkpoint, spoiled(bench.made["good"], value))
    with pytest.raises(UserError, match=r"head\.output\.bias is not finite"):
        bench.promote(run)
    assert not bench.client.search_registered_models()


def test_outputs_that_are_not_finite_are_refused_though_all_weights_are(bench: Bench) -> None:
    weights = {name: tensor.clone() for name, tensor in bench.made["good"].items()}
    weights["head.output.weight"] *= 3e38
    with pytest.raises(GateRefusedError, match=r"gives values that are not finite for \d+ of 120"):
        bench.promote(bench.run(weights))


def test_one_sample_whose_outputs_are_not_finite_is_enough() -> None:
    finite, right = np.array([True, False, True]), np.ones(3, bool)
    candidate: Any = SimpleNamespace(
        name="run 1",
        split="validation",
        outcomes=Outcomes(right, finite, (right & finite).astype(float)),
    )
    with pytest.raises(GateRefusedError, match=r"not finite for 1 of 3 samples of the validation"):
        judge(candidate, None, RegistryConfig(), Console())


def test_a_champion_that_is_not_finite_is_no_obstacle_and_it_is_said(bench: Bench) -> None:
    bench.promote(bench.run("good"))
    (file,) = (bench.output / "mlartifacts").rglob("model.safetensors")
    from safetensors.torch import load_file, save_file

    save_file(spoiled(load_file(file), float("nan")), file)
    result = bench.promote(bench.run("poor"))
    assert (result["version"], result["champion_accuracy"], result["p_value"]) == ("2", 0.0, None)
    assert (
        f"{NAME} version 1 gives no finite value, so this run does not have to beat it"
        in bench.printed
    )
    json.loads(json.dumps(result), parse_constant=pytest.fail)


def test_a_damaged_champion_is_no_missing_one(bench: Bench) -> None:
    bench.promote(bench.run("poor"))
    good = bench.run("good")
    (card,) = (bench.output / "mlartifacts").rglob("card.json")
    whole = card.read_text()
    for damaged in ("{}", whole[:50], whole.replace('"odd"', '"odd", "more"')):
        card.write_text(damaged)
        with pytest.raises(UserError, match=rf"{NAME} version 1: cannot be read"):
            bench.promote(good)
    card.unlink()
    with pytest.raises(UserError, match="was not registered by 'perceiver promote'"):
        bench.promote(good)
    assert bench.champion == "1"


def test_a_run_that_was_continued_is_judged_anew(bench: Bench) -> None:
    run = bench.run("poor")
    bench.promote(run)
    assert bench.promote(run)["skipped"]
    other = bench.run("good")
    checkpoint = bench.client.get_run(other).data.tags["perceiver.checkpoint"]
    bench.client.set_tag(run, "perceiver.checkpoint", checkpoint)
    result = bench.promote(run)
    assert (result["skipped"], result["version"]) == (False, "2")


def test_a_splits_files_that_the_champion_was_trained_on_are_left_out(
    digit_shards: Path, digit_images: Path, make_config: Callable[..., Config], tmp_path: Path,
    console: Console, ray_cluster: None,
) -> None:  # fmt: skip
    """Of files the sources' bytes tell, whatever their names and places are by now."""
    from pipeline.preprocess.preprocess import preprocess

    moved = tmp_path / "moved"
    for place, file in enumerate(sorted((digit_images / "train").glob("*/*.png"))):
        copy = moved / file.parent.name / f"{place}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    shared = ("cluster.num_workers=0", "registry.model_name=files")
    first = make_config(tmp_path, "name=first", f"shards={digit_shards}", *shared)
    second = make_config(
        tmp_path, "name=second", f"data.train={moved}", "seed=1", "data.validation=0.4", *shared
    )
    preprocess(second, console)
    mlflow_client = client(first.tracking_uri)
    for config in (first, second):
        shard_set = ShardSet.open(config.shards_folder)
        run = write_run(config, shard_set, new_model(config, shard_set).state_dict())
        if config is first:
            promote(mlflow_client, run, console)
    sha256s = {
        (config.name, split): digests_of(ShardSet.open(config.shards_folder), split)
        for config in (first, second)
        for split in ("train", "validation")
    }
    known = sha256s["second", "validation"] & sha256s["first", "train"]
    left = sha256s["second", "validation"] - known
    assert len(known) > 20
    assert len(left) >= 5
    with pytest.raises(GateRefusedError, match=rf"on {len(left)} samples"):
        promote(mlflow_client, run, console)


def digests_of(shard_set: ShardSet, split: str) -> set[str]:
    import pyarrow.parquet as pq

    folder = shard_set.location.folder
    assert folder is not None
    return {
        digest
        for number in shard_set.shards(split)["number"].to_pylist()
        for digest in pq.read_table(folder / f"index/{number:05d}.parquet")[
            "source_sha256"
        ].to_pylist()
    }


def test_the_command_line_takes_the_rules_and_refuses_senseless_ones(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.promote(bench.run("poor"))
    good = bench.run("good")
    place = ["--output", str(bench.output)]
    track(bench.first.tracking_uri)
    assert main(["promote", good, "--alpha", "2", *place]) == 2
    assert "alpha=2.0: 0 <= min_gain < 1 and 0 < alpha <= 1" in capfd.readouterr().err
    assert main(["promote", good, "--alias", "latest", *place]) == 2
    assert main(["promote", good, "--min-gain", "0.99", *place]) == 1
    assert bench.champion == "1"
    assert main(["promote", good, "--min-gain", "0.01", "--json", *place]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["version"] == "2"


def test_too_many_unreadable_samples_end_it(bench: Bench) -> None:
    run = bench.run("good")
    for tar in Path(bench.first.shards_folder).glob("shard-00001.tar"):
        tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(UserError, match="120 of 120 samples of the validation split cannot be re"):
        bench.promote(run)
