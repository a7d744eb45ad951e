"""Of which split a refused source is."""

import pytest
from source_trees import every_suffix, listed, make_tar, make_tree, write_listing

from pipeline.preprocess.build import refused_rows


def refusals(source_table) -> list[tuple[str, str, str]]:
    """Source, split and reason of the rows that go into the quarantine."""
    columns = ("source_uri", "split", "reason")
    return [tuple(row[name] for name in columns) for row in refused_rows(source_table).to_pylist()]


@every_suffix
def test_a_refused_row_is_of_the_split_that_its_column_names(tmp_path, suffix):
    make_tree(tmp_path, "1.png", "2.png", "3.png")
    values = {
        "file": ["1.png", "2.png", "3.png", "gone.png", "gone2.png", "../x", "2.png", None, "odd"],
        "part": ["train", "val", "test", "validation", "test", "dev", "val", "test", "other"],
    }
    path = write_listing(tmp_path, suffix, values)
    source_table = listed(path, columns={"image": "file", "split": "part"}, target={"kind": "none"})
    message = "split 'other' is none of train, validation, test"
    outside = "image: lies outside the listing's folder; data.allow names what else may be read"
    again = "an earlier row has this name; name rows by data.columns.key"
    assert sorted(refusals(source_table)) == [
        ("test/gone2.png", "test", "image: No such file or directory"),
        (f"test/rows{suffix}#7", "test", "column 'file' has no value"),
        ("train/odd", "train", message),
        ("validation/../x", "validation", outside),
        ("validation/2.png", "validation", again),
        ("validation/gone.png", "validation", "image: No such file or directory"),
    ]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_is_refused_in_a_place_of_its_own_is_of_its_split(tmp_path, split):
    make_tree(tmp_path, "a/x/1.png", "a/y/2.png", "b/x/3.png", "b/loose.png")
    source_table = listed(tmp_path / "a", **{split: str(tmp_path / "b")})
    assert refusals(source_table) == [
        (f"{split}/loose.png", split, "lies beside the class folders"),
    ]
    make_tar(tmp_path / "a.tar", {"1.png": b"1", "1.cls": b"x", "2.png": b"2", "2.cls": b"y"})
    make_tar(tmp_path / "b.tar", {"1.png": b"1", "1.cls": b"x", "2.png": b"2"})
    source_table = listed(tmp_path / "a.tar", **{split: str(tmp_path / "b.tar")})
    ((uri, found, _),) = refusals(source_table)
    assert (uri, found) == (f"{split}/b.tar/2", split)
    for name in ("a", "b"):
        make_tree(tmp_path, "1.png")
        write_listing(tmp_path, ".csv", {"file": ["1.png", "gone.png", "1.png"]}, name=name)
    rows = {"columns": {"image": "file"}, "target": {"kind": "none"}}
    source_table = listed(tmp_path / "a.csv", **rows, **{split: str(tmp_path / "b.csv")})
    assert sorted((uri, found) for uri, found, _ in refusals(source_table)) == sorted(
        (f"{each}/{name}", each) for each in ("train", split) for name in ("1.png", "gone.png")
    )
