"""The registry: gated, fetched back by alias, at work on raw files with the model's code alone."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from gate_runs import track
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from trainings import evaluated_as_trained, train_and_report

from pipeline.cli.main import main
from pipeline.config.tree import Config
from pipeline.errors import GateRefusedError, UserError
from pipeline.evaluation.evaluate import evaluate
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.train import train

NAME = "three-digits"
URI = f"models:/{NAME}@champion"


@pytest.fixture(scope="module")
def trained(
    make_config: Callable[..., Config],
    digit_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """A good and a bad run in one output folder, the good one promoted."""
    output = tmp_path_factory.mktemp("registry")
    shared = (f"shards={digit_shards}", "cluster.num_workers=0", f"registry.model_name={NAME}")
    good = make_config(output, *shared, "training.epochs=12")
    bad = make_config(output, *shared, "name=worse", "training.learning_rate=1e-7")
    with (output / "console.txt").open("w") as file:
        console = Console(file, file)
        results = {name: train_and_report(c, console) for name, c in (("good", good), ("bad", bad))}
        runs = {name: result["run_id"] for name, result in results.items()}
        mlflow_client = client(good.tracking_uri)
        first = promote(mlflow_client, runs["good"], console)
    made = {"client": mlflow_client, "output": output, "config": good}
    return {**runs, **made, "first": first, "result": results["good"]}


@pytest.fixture
def registry(trained: dict[str, Any]) -> dict[str, Any]:
    track(trained["config"].tracking_uri)
    return trained


def test_the_first_model_becomes_champion_and_its_tags_tell_why(registry: dict[str, Any]) -> None:
    first = registry["first"]
    assert first["model_uri"] == URI
    assert first["champion_accuracy"] is None
    version = registry["client"].get_model_version_by_alias(NAME, "champion")
    assert version.run_id == registry["good"]
    assert float(version.tags["perceiver.accuracy"]) == first["accuracy"] > 0.5
    assert len(version.tags["perceiver.shards_digest"]) == 64


def test_evaluations_give_the_numbers_of_the_training_on_one_worker_and_on_two(
    registry: dict[str, Any], ray_cluster: None, console: Console, tmp_path: Path
) -> None:
    config, trained = registry["config"], registry["result"]
    alone = evaluated_as_trained(config, trained, console)
    both = evaluated_as_trained(config, trained, console, "cluster.num_workers=2")
    assert both["classes"] == alone["classes"]
    assert both["confusion_matrix"] == alone["confusion_matrix"]
    assert both["calibration"]["error"] == pytest.approx(alone["calibration"]["error"], abs=1e-6)
    assert [each["source"] for each in both["worst"]] == [each["source"] for each in alone["worst"]]
    picture = base64.b64decode(both["worst"][0]["attention"]["image"]["png"]["base64"])
    assert Image.open(io.BytesIO(picture)).size == (28, 28)
    by_folder = evaluate(registry["client"], str(config.folder), console)
    assert by_folder["metrics"] == alone["metrics"]


def test_a_worse_model_is_refused_and_the_alias_stays(
    registry: dict[str, Any], console: Console
) -> None:
    with pytest.raises(GateRefusedError, match=r"not promoted: run .* has accuracy"):
        promote(registry["client"], registry["bad"], console)
    version = registry["client"].get_model_version_by_alias(NAME, "champion")
    assert version.run_id == registry["good"]
    assert len(registry["client"].search_model_versions(f"name='{NAME}'")) == 1


def test_promoting_the_champion_again_changes_nothing(
    registry: dict[str, Any], console: Console
) -> None:
    again = promote(registry["client"], registry["good"], console)
    assert again["skipped"]
    assert again["version"] == registry["first"]["version"]


def test_a_better_model_takes_the_alias(registry: dict[str, Any], console: Console) -> None:
    promote(registry["client"], registry["bad"], console, name="rising")
    better = promote(registry["client"], registry["good"], console, name="rising")
    assert better["version"] == "2"
    assert better["accuracy"] > better["champion_accuracy"]


def test_a_champion_of_other_input_is_never_overtaken_unseen(
    registry: dict[str, Any],
    make_config: Callable[..., Config],
    tmp_path: Path,
    ray_cluster: None,
    console: Console,
) -> None:
    from pipeline.preprocess.preprocess import preprocess

    larger = make_config(
        registry["output"], "name=larger", "data.image.height=32", "cluster.num_workers=0",
        f"registry.model_name={NAME}", "training.epochs=1",
    )  # fmt: skip
    preprocess(larger, console)
    run_id = train(larger, console)["run_id"]
    with pytest.raises(UserError, match="takes other input than this run"):
        promote(registry["client"], run_id, console)
    version = registry["client"].get_model_version_by_alias(NAME, "champion")
    assert version.run_id == registry["good"]


def test_raw_paths_and_raw_bytes_give_classes_and_probabilities(
    registry: dict[str, Any], digit_images: Path
) -> None:
    files = sorted((digit_images / "test").glob("*/*.png"))
    model = mlflow.pyfunc.load_model(URI, model_config={"allow_paths": True})
    assert model.metadata.get_input_schema().inputs and model.input_example is not None
    by_path = model.predict([str(file) for file in files])
    assert list(by_path.columns) == ["source", "label", "probability", "probabilities", "error"]
    truth = [file.parent.name for file in files]
    # Of three classes. The order of training follows the set's digest, and so where the files lie.
    assert np.mean(by_path["label"].to_numpy() == truth) > 0.5
    row = by_path.iloc[0]
    assert set(row["probabilities"]) == {"0", "1", "7"}
    assert abs(sum(row["probabilities"].values()) - 1) < 1e-9
    assert row["probability"] == max(row["probabilities"].values())
    by_bytes = model.predict([file.read_bytes() for file in files])
    assert list(by_bytes["label"]) == list(by_path["label"])
    table = model.predict(pd.DataFrame({"image": [str(files[0])]}))
    assert table["label"][0] == row["label"]


def test_bad_files_are_named_with_their_reason_and_get_no_class(
    registry: dict[str, Any], digit_images: Path, tmp_path: Path, console: Console
) -> None:
    good = next((digit_images / "test" / "0").glob("*.png"))
    shutil.copy(good, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "console.txt").unlink()
    before = sys.path.copy()
    result = predict(registry["client"], URI, [str(tmp_path)], console)
    assert sys.path == before
    first, second = result["predictions"]
    assert (first["error"], second["label"], result["bad"]) == (None, None, 1)
    assert second["source"].endswith("b.png")
    assert second["error"]
    with pytest.raises(UserError, match=r"1 of 2 files cannot be used: .*b\.png"):
        predict(registry["client"], URI, [str(tmp_path)], console, max_bad_fraction=0.4)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/no-such-model@champion", "no-such-model"),
        (f"models:/{NAME}@no-such-alias", "no-such-alias"),
        (f"models:/{NAME}/99", "99"),
    ],
)
def test_a_model_that_is_not_there_gets_one_line_and_exit_2(
    registry: dict[str, Any], digit_images: Path, capfd: pytest.CaptureFixture[str],
    uri: str, message: str,
) -> None:  # fmt: skip
    status = main(["predict", uri, str(digit_images / "test"), "--output", str(registry["output"])])
    lines = capfd.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert NAME in lines[0], "the line says which models there are"


def test_the_command_line_predicts_to_a_table_json_and_a_file(
    registry: dict[str, Any], digit_images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", URI, str(digit_images / "test" / "7"),
                 "--output", str(registry["output"])]  # fmt: skip
    assert main(arguments) == 0
    assert "probability" in capfd.readouterr().out
    assert main([*arguments, "--json", "--to", str(tmp_path / "answers.parquet")]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert len(result["predictions"]) == 20
    table = pd.read_parquet(tmp_path / "answers.parquet")
    assert list(table["label"]) == [p["label"] for p in result["predictions"]]


def with_all_they_need(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """The installed distributions that pip would install for these requirements, by name."""
    left, found = [Requirement(line) for line in requirements], {}
    while left:
        wanted = left.pop()
        installed = metadata.distribution(wanted.name)
        assert installed.version in wanted.specifier, f"{wanted}, not {installed.version}"
        key = f"{canonicalize_name(wanted.name)}[{','.join(sorted(wanted.extras))}]"
        if key in found:
            continue
        found[key] = installed
        extras = [{"extra": extra} for extra in ("", *wanted.extras)]
        needed = map(Requirement, installed.requires or [])
        left += [n for n in needed if not n.marker or any(map(n.marker.evaluate, extras))]
    return found


def link_or_copy(file: str, link: Path) -> None:
    try:
        link.hardlink_to(file)
    except OSError:  # on another file system
        shutil.copy2(file, link)


def test_the_model_works_where_only_its_requirements_are_installed(
    registry: dict[str, Any], digit_images: Path, tmp_path: Path
) -> None:
    """A new virtual environment with what the model's requirements.txt names, and nothing else.

    It has links to the installed files, because pip would take a minute to copy them. They are no
    symbolic links, which the sandbox would not follow.
    """
    version = registry["client"].get_model_version_by_alias(NAME, "champion")
    requirements = mlflow.artifacts.download_artifacts(
        f"models:/{NAME}/{version.version}/requirements.txt", dst_path=str(tmp_path)
    )
    code = mlflow.artifacts.download_artifacts(
        f"models:/{NAME}/{version.version}/code", dst_path=str(tmp_path)
    )
    rooms = {path.relative_to(code).parts[:2] for path in Path(code).rglob("*.py")}
    assert {room for package, room in rooms if package == "pipeline"} == {
        "__init__.py", "inputs", "media", "registry", "training",
    }  # fmt: skip
    of_training = {path.name for path in (Path(code) / "pipeline" / "training").iterdir()}
    assert of_training == {"__init__.py", "objectives"}
    assert ("perceiver_model", "deepmind") not in rooms
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    (packages,) = home.glob("lib/python*/site-packages")
    for installed in with_all_they_need(Path(requirements).read_text().splitlines()).values():
        for file in installed.files or []:
            if file.parts[0] != ".." and file.suffix != ".pyc":  # scripts lie elsewhere
                link = packages / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link_or_copy(str(installed.locate_file(file)), link)
    image = next((digit_images / "test" / "7").glob("*.png"))
    program = f"""
import importlib.util, json, sys, mlflow
for name in ("ray", "deepspeed", "webdataset", "shards", "cluster", "pipeline", "perceiver_model"):
    assert importlib.util.find_spec(name) is None, name
mlflow.set_tracking_uri({registry["config"].tracking_uri!r})
model = mlflow.pyfunc.load_model({URI!r})
row = model.predict([open({str(image)!r}, "rb").read()]).iloc[0]
print(json.dumps([row["label"], row["probabilities"], sys.prefix]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    label, probabilities, prefix = json.loads(done.stdout.splitlines()[-1])
    here = mlflow.pyfunc.load_model(URI).predict([image.read_bytes()]).iloc[0]
    assert label == here["label"]
    for name, probability in probabilities.items():
        assert abs(probability - here["probabilities"][name]) < 1e-6
    assert Path(prefix).samefile(home)
