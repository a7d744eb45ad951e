"""The code that travels with a registered model answers without the rest of the project."""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.media import ImageFormat
from pipeline.registry.package import copied_code
from pipeline.training.objectives import OBJECTIVES

LOOK = """
import sys
from pathlib import Path

import pipeline.registry.served.inference
from pipeline.training.objectives import OBJECTIVES

OWN = ("benchmarks", "cluster", "perceiver_model", "pipeline", "shards")
loaded = {name for name in sys.modules if name.partition(".")[0] in OWN}
print(sorted({name.partition(".")[0] for name in loaded}))
print(sorted(n for n in loaded if n.startswith("pipeline.training") and "objectives" not in n))
print(len(OBJECTIVES), Path(pipeline.__file__).parents[1] == Path.cwd())
"""


def test_objectives_travel_and_bring_nothing_else_of_training(tmp_path: Path) -> None:
    copied_code(tmp_path, ImageFormat(height=8, width=8))
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['perceiver_model', 'pipeline']", "['pipeline.training']", f"{len(OBJECTIVES)} True",
    ]  # fmt: skip
