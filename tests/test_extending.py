"""The steps of docs/extending.md, done as it says in a copy of the project."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

from perceiver_model.adapters import build
from perceiver_model.adapters.configs import MediaAdapter, MediaInput
from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from pipeline.config.load import validate
from pipeline.media.registered import MODALITIES
from pipeline.preprocess.identity import set_identity

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "perceiver_model", "shards", "cluster")
IMAGES = {
    "name": "images",
    "data": {"train": "raw", "image": {"height": 8, "width": 8}},
    "model": {"adapter": {"kind": "pixels"}},
}


def blocks(section: str) -> list[tuple[str, str]]:
    """A section's code blocks, each after the paragraph that says what becomes of it."""
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    _, heading, rest = page.partition(f"\n## {section}\n")
    assert heading, f"docs/extending.md has no section {section!r}"
    parts = re.split(r"^```\w+\n(.*?)^```$", rest.partition("\n## ")[0], flags=re.S | re.M)
    return [
        (before.strip().split("\n\n")[-1].replace("\n", " "), code)
        for before, code in zip(parts[0:-1:2], parts[1::2], strict=True)
    ]


def copy_of_the_project(folder: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package)
    return folder


def write_files(folder: Path, found: list[tuple[str, str]]) -> None:
    """Write the blocks whose paragraph says "Write `FILE`"."""
    for text, code in found:
        if names := re.findall(r"Write `([\w./]+)`", text):
            path = folder / names[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)


def output_of(folder: Path, *arguments: str) -> str:
    """What Python prints that finds the project in this folder alone."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- a modality ---

LOOK = """
import json, runpy, sys
from pathlib import Path
from pipeline.config.load import load_config, validate

config = load_config("heartbeats.yaml")
assert "torch" not in sys.modules, "torch is imported where a configuration is read"

from pipeline.errors import UserError
from pipeline.media import MediaError
from pipeline.media.arrays import Decoder
from pipeline.media.registered import MODALITIES
from pipeline.preprocess.identity import set_identity
from pipeline.preprocess.sources import list_sources
from pipeline.registry.package import copied_code
from pipeline.registry.served.contract import input_example

tree = config.tree()

def refusal(**data):
    try:
        validate({**tree, "data": {**tree["data"], **data}}, "x")
    except UserError as error:
        return str(error)

fmt = config.data.formats["series"]
decoder = Decoder(fmt, seconds=60, memory_bytes=2**31, strict=True, sandbox="best")
array = decoder.decode(b"1,2\\n3,4\\n", "x.csv")
try:
    decoder.decode(b"1,2,3\\n", "x.csv")
except MediaError as error:
    reason = str(error)
decoder.close()
listing = list_sources(config)
print(json.dumps({
    "value": refusal(series={"num_steps": 0, "num_channels": 2}),
    "key": refusal(series={"num_steps": 4, "num_chanels": 2}),
    "column": refusal(columns={"series": "p"}, image={"height": 8, "width": 8}, series=None),
    "missing": refusal(allow_missing=["serie"]),
    "array": array.tolist(),
    "reason": reason,
    "files": listing.table.num_rows,
    "images": set_identity(validate(json.loads(sys.argv[1]), "x")),
    "series": set_identity(config)["data.series"],
    "code": [path.name for path in copied_code(Path("code"), fmt)],
    "example": input_example(fmt)["series"][0].decode(),
}))
runpy.run_path("tokens.py")
"""


def test_a_modality_takes_two_modules_and_one_line(tmp_path):
    folder = copy_of_the_project(tmp_path)
    found = blocks("Add a modality")
    write_files(folder, found)
    (folder / "series" / "__init__.py").touch()
    ((_, line),) = [block for block in found if "Add the line to `MODALITIES`" in block[0]]
    registered = folder / "pipeline" / "media" / "registered.py"
    before, end, after = registered.read_text().partition("\n}\n")
    registered.write_text(f"{before}\n{line.rstrip()}{end}{after}")
    ((_, printed),) = [block for block in found if block[0].endswith("prints:")]
    output_of(folder, "draw.py")
    (folder / "look.py").write_text(LOOK)
    looked, _, tokens = output_of(folder, "look.py", json.dumps(IMAGES)).partition("\n")
    assert tokens == printed
    seen = json.loads(looked)
    assert seen["value"].startswith("x: data.series.num_steps: is 0; must be greater than or")
    assert "data.series.num_chanels: unknown key; did you mean 'num_channels'?" in seen["key"]
    assert "columns.series is given, but not the section 'series'" in seen["column"]
    assert "'text', 'table' or 'series'" in seen["missing"]
    assert seen["array"] == [[1.0, 2.0], [3.0, 4.0]]
    assert seen["reason"] == "numbers of shape [1, 3]; [steps, 2] is needed"
    assert seen["files"] == 80
    assert seen["series"] == {"num_steps": 4, "num_channels": 2}
    assert seen["code"] == ["perceiver_model", "pipeline", "series"]
    assert seen["example"] == "0,0"
    # Sets of other modalities keep their digest.
    assert seen["images"] == json.loads(json.dumps(set_identity(validate(IMAGES, "x"))))


# --- an objective ---

SEEN = """
import ast, json, runpy, subprocess, sys
from pipeline.config.load import validate

config = validate(json.loads(sys.argv[1]), "x")
assert "torch" not in sys.modules, "torch is imported where a configuration is read"

from pipeline.errors import UserError
from pipeline.training.objectives import OBJECTIVES

def refusal(objective, target):
    tree = config.tree()
    try:
        validate({**tree, "objective": objective,
                  "data": {**tree["data"], "target": target}}, "x")
    except UserError as error:
        return str(error)

number = {"kind": "regression"}
print(json.dumps({
    "kind": config.trained_for.kind,
    "outputs": config.trained_for.model(config, 0).num_classes,
    "target": refusal({"kind": "count"}, {"kind": "class"}),
    "option": refusal({"kind": "count", "larges": 3}, number),
    "default": validate({**config.tree(), "objective": None}, "x").trained_for.kind,
}))
runpy.run_path("losses.py")
"""


def test_an_objective_takes_two_modules_and_a_line_for_each(tmp_path):
    folder = copy_of_the_project(tmp_path)
    found = blocks("Add an objective")
    write_files(folder, found)
    options = folder / "pipeline" / "config" / "objectives" / "__init__.py"
    ((_, line),) = [block for block in found if "Add the class to `OBJECTIVE_CONFIGS`" in block[0]]
    text = options.read_text().replace("\nOBJECTIVE_CONFIGS", f"\n{line}\nOBJECTIVE_CONFIGS", 1)
    before, end, after = text.partition("\n)\n")
    options.write_text(f"{before}\n    CountConfig,{end}{after}")
    objectives = folder / "pipeline" / "training" / "objectives" / "__init__.py"
    ((_, line),) = [block for block in found if "Add the line to `OBJECTIVES`" in block[0]]
    own = "from pipeline.training.objectives.count import Counting\n"
    text = objectives.read_text().replace("\nOBJECTIVES:", f"\n{own}\nOBJECTIVES:", 1)
    before, end, after = text.partition("\n}\n")
    objectives.write_text(f"{before}\n{line.rstrip()}{end}{after}")
    (folder / "seen.py").write_text(SEEN)
    tree = {
        **IMAGES,
        "data": {**IMAGES["data"], "target": {"kind": "regression", "columns": ["a", "b"]}},
        "objective": {"kind": "count", "largest": 50.0},
    }
    printed, metrics = output_of(folder, "seen.py", json.dumps(tree)).splitlines()
    seen = json.loads(printed)
    assert (seen["kind"], seen["outputs"], seen["default"]) == ("count", 2, "regress")
    assert "needs data.target.kind 'regression'; it is 'class'" in seen["target"]
    assert "objective.larges: unknown key; did you mean 'largest'?" in seen["option"]
    assert {"val_loss", "val_mae"} == ast.literal_eval(metrics).keys()


# --- modalities ---

OWN_FILES = re.compile(
    rf"pipeline/(media|inputs)/({'|'.join(MODALITIES)})[/.]|pipeline/training/augmentation/"
    r"|pipeline/inputs/pixels\.py"  # what images and films share
    r"|pipeline/media/(__init__|members|targets)\.py"  # masks are read with an image's format
    r"|pipeline/studies/"  # a study asks about data of one kind, and its peers read that kind
)


def test_no_other_module_tells_modalities_apart():
    # Columns of listings have a role of this name, too.
    names = MODALITIES.keys() - {"text"}
    found = []
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        if OWN_FILES.match(where):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                told = [a.name for a in node.names if a.name.endswith("Format")]
                found += [(where, name) for name in told if name not in ("MediaFormat", "Format")]
            elif isinstance(node, ast.Compare | ast.Subscript | ast.match_case):
                inner = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                found += [(where, value) for value in inner if value in names]
    # A mask is a target for an image, so such a set needs images.
    assert found == [("pipeline/config/data.py", "image")]


def test_every_adapter_is_built_for_every_input_that_it_reads():
    adapters = (*get_args(MediaAdapter), PaddedModalities)
    pairs = {(media, adapter) for adapter in adapters for media in adapter.reads}
    assert pairs == build._BUILDERS.keys()
    assert {media for media, _ in pairs} == {*get_args(MediaInput), MultimodalInput}
