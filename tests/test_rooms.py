"""The house: which packages import which. Imports inside functions count as well."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "cli", "studies", "demo", "workflow", "serving", "evaluation", "registry", "tuning", "plan",
    "training", "preprocess", "runs", "deploy", "config", "inputs", "media",
)  # fmt: skip
"""Of `pipeline`, from above; each imports only from those after it."""
LAYERS = ("benchmarks", "pipeline", "perceiver_model", "cluster", "shards")
ALLOWED = {
    "benchmarks": {"pipeline", "perceiver_model", "cluster", "shards"},
    "pipeline": {"perceiver_model", "cluster", "shards", "benchmarks"},
    "cluster": {"shards"},
    "perceiver_model": set(),
    "shards": set(),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for top in LAYERS for path in (ROOT / top).rglob("*.py")}


def imported(module: str) -> set[str]:
    """Our modules that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & FILES.keys()) - {module}


GRAPH = {module: imported(module) for module in FILES}


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    used = {
        name.partition(".")[0]
        for module, names in GRAPH.items()
        if module.partition(".")[0] == package
        for name in names
    }
    assert used - {package} <= ALLOWED[package]


def test_each_room_imports_only_those_below_it() -> None:
    upward = [
        (module, name)
        for module, names in GRAPH.items()
        for name in names
        if module.startswith("pipeline.") and name.startswith("pipeline.")
        if room_of(module) in ROOMS and room_of(name) in ROOMS
        if ROOMS.index(room_of(name)) < ROOMS.index(room_of(module))
    ]
    assert upward == []


def test_every_module_of_the_pipeline_is_in_a_room() -> None:
    rooms = {room_of(module) for module in FILES if module.startswith("pipeline.")}
    assert rooms == {*ROOMS, "__main__", "errors"}


def room_of(module: str) -> str:
    return module.split(".")[1]
