"""Any number of files to a folder of Parquet parts: by this process or by Ray, killed or not."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from registered_models import owls

from pipeline.cli.main import main
from pipeline.errors import UserError
from pipeline.registry.predict import _digest, open_model, predict, weights_of
from pipeline.registry.predict_folder import STATE_FILE, Request, predict_to_folder
from pipeline.registry.predict_inputs import Inputs
from pipeline.registry.predict_part import Weights
from pipeline.registry.predict_plan import PART_INPUTS
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client

COUNT = 2 * PART_INPUTS + 100
URI = "models:/owls@champion"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A registered model of digits, and a folder of many small images, some of which are bad."""
    folder = tmp_path_factory.mktemp("folder")
    store = owls(folder)
    images = folder / "images"
    random = np.random.default_rng(0)
    for number in range(COUNT):
        path = images / f"{number // 1000}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 700 == 3:
            path.write_bytes(b"no image")
            continue
        Image.fromarray(random.integers(0, 256, (14, 14), np.uint8)).save(path)
    return {"client": client(store), "store": store, "images": images, "folder": folder}


@pytest.fixture(scope="module")
def expected(made: dict[str, Any]) -> pa.Table:
    """The table of all images in one file, predicted in memory."""
    target = made["folder"] / "one.parquet"
    with (made["folder"] / "console.txt").open("w") as file:
        predict(made["client"], URI, [str(made["images"])], Console(file, file), output=target)
    return pq.read_table(target)


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def to_folder(made: dict[str, Any], to: Path, console: Console, **options: Any) -> dict[str, Any]:
    return predict(made["client"], URI, [str(made["images"])], console, output=to, **options)


@pytest.fixture(scope="module")
def by_ray(made: dict[str, Any], ray_cluster: None) -> dict[str, Any]:
    """The same images to a folder, by two processes, because there are many of them."""
    with (made["folder"] / "console.txt").open("w+") as file:
        result = to_folder(made, made["folder"] / "ray", Console(file, file))
        file.seek(0)
        return {**result, "told": file.read()}


def test_many_files_are_predicted_by_ray_to_the_same_table_in_the_same_order(
    made: dict[str, Any], expected: pa.Table, by_ray: dict[str, Any]
) -> None:
    table = pa.concat_tables(pq.read_table(p) for p in sorted(Path(by_ray["to"]).glob("*.parquet")))
    assert table.equals(expected)
    assert table["source"].to_pylist() == [str(p) for p in sorted(made["images"].rglob("*.png"))]
    assert pq.read_table(by_ray["to"]).num_rows == COUNT, "readers pass over the other files"
    assert by_ray["made"] == by_ray["parts"] == 3
    bad = [number for number in range(COUNT) if number % 700 == 3]
    assert by_ray["bad"] == len(bad)
    assert [Path(each["source"]).stem for each in by_ray["bad_files"]] == [f"{n:05d}" for n in bad]
    assert all("image" in each["error"] for each in by_ray["bad_files"])
    assert not (Path(by_ray["to"]) / "_plan").exists()


def test_relative_paths_are_below_the_folder_of_the_command(
    made: dict[str, Any], by_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.chdir(made["folder"])
    with tarfile.open("some.tar", "w") as tar:
        tar.add("images/0/00000.png", "a.png")
    Path("some.csv").write_text("image\nimages/0/00001.png\n", encoding="utf-8")
    given = ["images/2", "some.tar", "some.csv", "./images/0/00002.png"]
    found = {}
    for workers in (0, 1):
        to = f"relative-{workers}"
        result = predict(made["client"], URI, given, console, output=Path(to), workers=workers)
        assert result["to"] == str(made["folder"] / to)
        found[workers] = parts(made["folder"] / to)
    assert found[0] == found[1]
    rows = pq.read_table("relative-1").to_pylist()
    names = [row["source"] for row in rows]
    images = [str(p.relative_to(made["folder"])) for p in sorted((made["images"] / "2").iterdir())]
    assert names == [*images, "some.tar/a.png", "images/0/00001.png", "images/0/00002.png"]
    assert all(row["error"] is None for row in rows[-3:])


def test_this_process_writes_the_same_bytes(
    made: dict[str, Any], by_ray: dict[str, Any], console: Console, tmp_path: Path
) -> None:
    result = to_folder(made, tmp_path / "here", console, workers=0)
    assert parts(tmp_path / "here") == parts(Path(by_ray["to"]))
    assert result["bad_files"] == by_ray["bad_files"]


def test_a_killed_prediction_makes_the_missing_parts_only_and_the_same_bytes(
    made: dict[str, Any], by_ray: dict[str, Any], console: Console, tmp_path: Path
) -> None:
    to = tmp_path / "killed"
    command = [
        sys.executable, "-m", "pipeline", "predict", URI, str(made["images"]), "--to", str(to),
        "--workers=0", "--tracking-uri", made["store"],
    ]  # fmt: skip
    deadline = time.monotonic() + 300
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (to / "part-000000.parquet").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = {name: (to / name).stat().st_mtime_ns for name in parts(to)}
    assert 0 < len(before) < 3
    (to / ".part-000001.parquet.1234.tmp").write_bytes(b"half")
    result = to_folder(made, to, console, workers=0)
    assert result["made"] == 3 - len(before) and not result["skipped"]
    assert parts(to) == parts(Path(by_ray["to"]))
    assert sorted(path.name for path in to.iterdir()) == [STATE_FILE, *parts(to)]
    assert {name: (to / name).stat().st_mtime_ns for name in before} == before
    assert (result["bad"], result["bad_files"]) == (by_ray["bad"], by_ray["bad_files"])
    again = to_folder(made, to, console, workers=0)
    assert again["skipped"] and again["made"] == 0
    assert again["bad_files"] == by_ray["bad_files"]


# --- few inputs: a model without a registry ---


@pytest.fixture
def few(made: dict[str, Any], tmp_path: Path, console: Console) -> Callable[..., dict[str, Any]]:
    """Predict a few of the images to `tmp_path/out` in this process."""
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(made["images"].rglob("*.png"))[:5]:
        shutil.copy2(path, some / path.name)
    weights = weights_of(open_model(made["client"], URI))

    def make(folder: str = "out", model: Weights = weights, **options: Any) -> dict[str, Any]:
        inputs = Inputs([str(some)], open_model(made["client"], URI).predictor.card.media)
        request = Request("models:/owls/1", _digest(model), inputs, tmp_path / folder, **options)
        return predict_to_folder(request, model, console)

    return make


def test_few_files_start_no_ray(few: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.registry.predict_folder.ray_session", None)
    assert few()["parts"] == 1


def test_a_folder_of_other_inputs_or_another_model_is_refused_and_replaced_with_fresh(
    few: Callable[..., Any], tmp_path: Path
) -> None:
    first = few()
    before = parts(tmp_path / "out")
    changed = next((tmp_path / "some").glob("*2.png"))
    changed.unlink()
    with pytest.raises(UserError, match=r"other inputs or of another model: inputs\.number was 5"):
        few()
    assert parts(tmp_path / "out") == before
    assert few(fresh=True)["files"] == first["files"] - 1
    state = tmp_path / "out" / STATE_FILE
    tree = json.loads(state.read_text())
    tree["made_of"]["model.sha256"] = "other"
    state.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"another model: model\.sha256 was 'other'"):
        few()
    state.write_text("[]")
    with pytest.raises(UserError, match="damaged; predict again with --fresh"):
        few()


def test_a_folder_with_other_files_is_left_alone(few: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    for options in ({}, {"fresh": True}):
        with pytest.raises(UserError, match=r"has files that are no predictions, such as letter"):
            few(**options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_predictions_go_to_object_storage(
    few: Callable[..., Any], made: dict[str, Any], console: Console, tmp_path: Path
) -> None:
    from pipeline.config.folders import folder_at

    few()
    to: Any = folder_at(f"memory://{tmp_path.name}/out")
    result = predict(
        made["client"], URI, [str(tmp_path / "some")], console, output=str(to), workers=0
    )
    assert result["files"] == 5
    ours = (tmp_path / "out" / "part-000000.parquet").read_bytes()
    assert (to / "part-000000.parquet").read_bytes() == ours
    files = sorted(each.name for each in to.iterdir() if each.is_file())
    assert files == [STATE_FILE, "part-000000.parquet"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--workers=2"], "--workers: is for predictions in a folder"),
        (["--fresh", "--to=x.csv"], "--fresh: is for predictions in a folder"),
        (["--to=x.txt"], "--to .*x.txt: a file ends in .jsonl, .csv, .parquet, and a folder has"),
        (["--to=out", "--workers=0"], "nothing: no such file or folder"),
    ],
)
def test_options_without_an_effect_are_refused(
    options: list[str], line: str, made: dict[str, Any], capfd: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["predict", URI, "nothing", "--tracking-uri", made["store"], *options]) == 2
    (told,) = capfd.readouterr().err.splitlines()
    assert re.search(line, told), told
