"""A small configuration in a file, and the lines in which one is refused."""

from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.errors import UserError

MINIMAL = """
name: tiny
data: {train: raw, image: {height: 8, width: 8}}
model: {adapter: {kind: pixels}}
"""


def write(folder: Path, text: str | bytes, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refusal(source: str, *overrides: str) -> list[str]:
    """The lines with which a configuration is refused."""
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    return str(caught.value).splitlines()
