"""Whose code runs as a backbone, and what of it travels with a registered model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_backbone import ENCODER, backbone, config

from pipeline.config.load import validate
from pipeline.errors import UserError
from pipeline.evaluation.attention import attention_views
from pipeline.media import ImageFormat
from pipeline.registry.backbone_code import check_backbone_is_own
from pipeline.registry.package import copied_code, package
from pipeline.registry.served.card import ModelCard, ModelCardError, read_card
from pipeline.runs.records import RunRecord, write_run_record
from pipeline.training.objectives import Batch
from pipeline.training.objectives.classification import Classification
from shards.loader import ShardBatch

FORMAT = ImageFormat(height=28, width=20, channels=1)


def card(**changes: Any) -> ModelCard:
    classes = ("a", "b", "c", "d", "e")
    return ModelCard(Classification(config(backbone(**changes)), classes), FORMAT)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


NET = "from small_backbone import SmallNet\n"


def test_a_card_names_no_code_that_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"marked.py": f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{NET}"})
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "card.json"
    path.write_text(card(module="marked:SmallNet").to_json())
    for trusted in ((), ("small_backbone:SmallNet",), ("marked:Other",)):
        with pytest.raises(ModelCardError, match="marked:SmallNet is code that is not trusted"):
            read_card(path, trusted)
    assert not (tmp_path / "ran").exists()
    assert (
        read_card(path, ("marked:SmallNet",)) == read_card(path) == card(module="marked:SmallNet")
    )
    assert (tmp_path / "ran").exists()


def test_a_run_s_backbone_was_trained_in_this_folder(tmp_path: Path) -> None:
    tree = {
        "name": "net",
        "output": str(tmp_path),
        "data": {"train": "raw", "image": {"height": 28, "width": 28}},
        "model": {
            "adapter": {"kind": "backbone", "module": "os:system", "outputs": ["output"]},
        },
    }
    run = validate(tree, "run")
    with pytest.raises(UserError, match="run r1: MLflow names the code os:system as its backbone"):
        check_backbone_is_own(run, "r1")
    write_run_record(run.folder, RunRecord("train", {"model.adapter.module": "net:Net"}, {}))
    with pytest.raises(UserError, match="its code is not run"):
        check_backbone_is_own(run, "r1")
    write_run_record(run.folder, RunRecord("tune", {"model.adapter.module": "os:system"}, {}))
    check_backbone_is_own(run, "r1")
    check_backbone_is_own(validate({**tree, "model": {"adapter": {"kind": "pixels"}}}, "run"), "r1")


def test_code_travels_or_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module beside the project travels, with the installed packages that it imports."""
    source = tmp_path / "source"
    net = (Path(__file__).parent / "small_backbone.py").read_text()
    write(
        source,
        {
            "own/__init__.py": "",
            "own/net.py": f"import mlxtend\n{net}",
            "alone.py": f"import own.net\n{net}",
        },
    )
    monkeypatch.syspath_prepend(source)
    data = validate(
        {
            "name": "x",
            "data": {"train": "raw", "image": {"height": 28, "width": 20, "channels": 1}},
            "model": {"adapter": {"kind": "pixels"}},
        },
        "x",
    ).data
    weights = tmp_path / "weights"
    (tmp_path / "one").mkdir()
    made = package(card(module="own.net:SmallNet"), tmp_path / "one", weights, data)
    assert [Path(path).name for path in made["code_paths"]] == [
        "own",
        "perceiver_model",
        "pipeline",
    ]
    requirements = [line.partition("==")[0] for line in made["pip_requirements"]]
    assert "mlxtend" in requirements and "own" not in requirements
    assert len({*requirements}) == len(requirements)
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match=r"would not load elsewhere .*no module 'own'; install it"):
        package(card(module="alone:SmallNet"), tmp_path / "two", weights, data)
    copied = copied_code(tmp_path / "three", FORMAT, backbone(module="torch.nn:Conv2d"))
    assert [path.name for path in copied] == ["perceiver_model", "pipeline"]
    assert card(module="alone:SmallNet").objective.model_config.token_grid == (4, 3)  # here


def test_the_view_of_an_evaluation_has_the_grid_of_the_last_attend() -> None:
    objective = card().objective
    objective = dataclasses.replace(
        objective, model_config=config(encoder=dataclasses.replace(ENCODER, num_cross_attends=2))
    )
    images = torch.randint(0, 256, (1, 28, 20, 1)).byte()
    empty, one = torch.tensor([0]), torch.ones(1)
    batch = ShardBatch({"image": images}, {}, empty, one, empty, (), 1)
    samples = Batch(images, None, empty, empty, one, empty)
    model = objective.build_model().eval()
    (view,) = attention_views(objective, model, {"image": FORMAT}, batch, samples).values()
    assert view["share"] == pytest.approx(1, abs=1e-5)
