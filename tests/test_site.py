"""What the site generates from the code: the reference of the fields, and the house."""

import re

import house
import pytest
from configuration_reference import HEADER, markdown, sections
from google_docstrings import split_names

from pipeline.config.fields import types_of_field
from pipeline.config.tree import Config

SECTIONS = sections(Config)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.cls.__name__)
def test_every_field_of_the_configuration_has_a_text(section):
    assert [field.name for field in section.fields if not field.text] == []
    assert section.summary


def test_the_reference_has_the_fields_that_a_configuration_takes():
    paths = {f"{s.path}.{field.name}".lstrip(".") for s in SECTIONS for field in s.fields}
    assert all(types_of_field(path.split(".")) or path.startswith("study.space") for path in paths)
    # One of each way in which a section holds another.
    assert paths >= {
        *("name", "data.image.height", "data.audio.mel.hop", "model.adapter.patch_size"),
        *("model.modalities.NAME.dropout", "model.positions.num_bands", "training.augment.flip"),
        *("model.encoder.num_latents", "model.decoder.num_heads", "study.space.NAME.uniform"),
    }


def test_a_field_s_row_has_its_type_bounds_default_and_text():
    text = markdown(Config)
    assert "## `training` { #training }" in text and HEADER[0] in text
    (row,) = (line for line in text.splitlines() if line.startswith("| `label_smoothing` |"))
    assert row.startswith(
        "| `label_smoothing` | number; at least 0, below 1 | `0.0` | The share of"
    )
    assert "| `name` | text; matches `^[A-Za-z0-9]" in text and "| must be given |" in text
    assert "| text or number (above 0, below 1) or null | `null` |" in text
    assert "[`kind: conv`](#model-adapter-conv)" in text
    assert "## `model.adapter` of kind `conv` { #model-adapter-conv }" in text


def test_names_that_share_a_text_are_split():
    assert split_names("Args:\n    a, *b: of both,\n        always.\n    c: one, two: three.") == (
        "Args:\n    a: of both,\n        always.\n    *b: of both,\n        always.\n"
        "    c: one, two: three."
    )


def test_the_picture_of_the_house_shows_its_imports():
    drawn = house.draw(house.without_shortcuts(house.imports()))
    assert house.PICTURE.read_text(encoding="utf-8") == drawn, "run python docs/hooks/house.py"


def test_an_arrow_that_others_imply_is_left_out():
    arrows = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d")}
    assert house.without_shortcuts(arrows) == {("a", "b"), ("b", "c"), ("c", "d")}


def test_no_room_of_the_picture_is_cut_off():
    picture = house.PICTURE.read_text(encoding="utf-8")
    ((width, height),) = re.findall(r'viewBox="0 0 (\d+) (\d+)" font', picture)
    boxes = re.findall(r'<rect x="(\d+)" y="(\d+)"', picture)
    assert len(boxes) == sum(map(len, house.FLOORS))
    assert all(int(x) + house.WIDTH < int(width) for x, _ in boxes)
    assert all(int(y) + house.HEIGHT < int(height) for _, y in boxes)
