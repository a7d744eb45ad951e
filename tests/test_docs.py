"""The examples of the documentation run as they stand."""

import re
from pathlib import Path

import torch

DOCS = Path(__file__).parent.parent / "docs"


def test_the_models_examples_run_one_after_the_other(tmp_path):
    torch.manual_seed(0)
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    names = {"folder": tmp_path}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) > 5
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), names)
