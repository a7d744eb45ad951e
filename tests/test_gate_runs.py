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
import torch
from gate_runs import (
    CLASSES,
    NAME,
    fitted_model,
    new_model,
    replace_weights,
    shuffled,
    some_rows,
    table_config,
    track,
    without_class,
    write_run,
    write_table_set,
)

from pipeline.cli.main import main
from pipeline.config.tree import Config, RegistryConfig
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry.judging import judge
from pipeline.registry.outcomes import Outcomes
from pipeline.registry.predict import load_model
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.objectives.classification import Classification
from shards import ShardSet

ROWS = some_rows(0, 600)
TRAIN, VALIDATION = ROWS[:480], ROWS[480:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A set of rows, a good model and one that never answers the third class; no registry."""
    output = tmp_path_factory.mktemp("gate")
    config = table_config(output, "first")
    shard_set = write_table_set(config, TRAIN, VALIDATION)
    model = fitted_model(config, shard_set, TRAIN)
    client(config.tracking_uri)
    return {
        "database": output / "mlflow.db",
        "shards": Path(config.shards_folder),
        "good": model.state_dict(),
        "poor": without_class(model, CLASSES.index("odd")),
        "untrained": new_model(config, shard_set).state_dict(),
    }


class Bench:
    """A registry of its own, and runs in it."""

    def __init__(self, output: Path, made: dict[str, Any]) -> None:
        self.output, self.made = output, made
        self.first = table_config(output, "first")
        shutil.copytree(made["shards"], self.first.shards_folder)
        shutil.copy(made["database"], output / "mlflow.db")
        self.client = client(self.first.tracking_uri)
        self.text = output / "console.txt"

    def run(self, weights: str | dict[str, torch.Tensor], config: Config | None = None) -> str:
        config = config or self.first
        if isinstance(weights, str):
            weights = self.made[weights]
        return write_run(config, ShardSet.open(config.shards_folder), weights)

    def promote(self, run_id: str, **options: Any) -> dict[str, Any]:
        with self.text.open("a") as file:
            return promote(self.client, run_id, Console(file, file), **options)

    @property
    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias(NAME, "champion").version)

    @property
    def told(self) -> str:
        return self.text.read_text()


@pytest.fixture
def bench(made: dict[str, Any], tmp_path: Path) -> Bench:
    return Bench(tmp_path / "runs", made)


def anew(bench: Bench, name: str, train: Any, validation: Any, **options: Any) -> Config:
    """The configuration of another set of rows, which is written."""
    classes = options.pop("classes", CLASSES)
    config = table_config(bench.output, name, **options)
    write_table_set(config, train, validation, classes)
    return config


def spoiled(weights: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    """Weights of which one is not finite."""
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["head.output.bias"][0] = value
    return weights


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
    ) in bench.told
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
    assert "100 of 100 rows of the validation split equal training rows" in bench.told


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
    assert ("has no record of what it was trained on" in bench.told) is set_is_gone


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
    assert f"{unknown} rows hold a category that the set does not know" in bench.told


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
    assert "does not know the classes odd: their samples count as wrong" in bench.told
    with pytest.raises(GateRefusedError):
        bench.promote(bench.run(without_class(model, 0), fewer))
    assert "also knows the classes odd, which this run does not have" in bench.told


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
    assert f"{NAME} version 1 gives no finite value; it is no obstacle" in bench.told
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
    with pytest.raises(UserError, match="is no Perceiver that 'perceiver promote' registered"):
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
