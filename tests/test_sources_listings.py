"""Sources in listing files: paths, and values in line."""

import os
import shutil
import zlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from source_trees import (
    IMAGE_ROWS,
    TABLE_COLUMNS,
    TEXT_ROWS,
    classes_of,
    every_suffix,
    listed,
    make_tree,
    paths,
    refusal,
    refused,
    rows,
    uris,
    write_listing,
)

from pipeline.preprocess.sources import part_file, plan_files, read_plan, write_plan
from pipeline.preprocess.sources.typed import to_role
from pipeline.preprocess.sources.vocabulary import iter_values


def planned(source_table, folder: Path, samples_per_shard: int = 3) -> list:
    """All rows of the listing's plan."""
    plan = folder / "plan" / "p.parquet"
    count = write_plan(source_table, plan, samples_per_shard)
    return [row for number in range(count) for row in read_plan(plan, number)]


# --- paths ---


@every_suffix
def test_paths_are_below_the_listings_folder_absolute_or_urls(tmp_path, suffix):
    make_tree(tmp_path / "a", "img/1.jpg", "img/2.jpg", "../far.jpg")
    files = ["img/1.jpg", str(tmp_path / "far.jpg"), "http://host/3.jpg", "img/2.jpg"]
    path = write_listing(
        tmp_path / "a", suffix, {"file": files, "kind": ["x", "y", "x", "y"], "n": [1] * 4}
    )
    allow = [str(tmp_path / "far.jpg"), "http://host"]
    source_table = listed(path, **IMAGE_ROWS, allow=allow)
    assert paths(source_table) == {f"train/{file}": file for file in files}
    assert source_table.classes == ("x", "y")
    assert classes_of(source_table)["train/img/2.jpg"] == "y"
    by_uri = {row["uri"]: row for row in rows(source_table)}
    assert by_uri["train/img/1.jpg"]["parts"]["image"]["size"] == len("img/1.jpg")
    assert by_uri["train/http://host/3.jpg"]["parts"]["image"]["size"] == -1
    assert source_table.table["row"].null_count == 4
    opened = {
        part_file(source_table.reaches["train"], row.parts[0])[1]
        for row in planned(source_table, tmp_path)
    }
    assert opened == {str(tmp_path / "a/img/1.jpg"), str(tmp_path / "a/img/2.jpg"), *files[1:3]}


@every_suffix
def test_files_that_are_missing_or_special_are_refused(tmp_path, suffix):
    make_tree(tmp_path, "1.jpg", "2.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dir.jpg").mkdir()
    files = ["1.jpg", "gone.jpg", "pipe.jpg", "dir.jpg", None, "2.jpg", "1.jpg", "2.jpg"]
    kinds = ["x", "x", "x", "x", "x", "y", "y", None]
    source_table = listed(
        write_listing(tmp_path, suffix, {"file": files, "kind": kinds}), **IMAGE_ROWS
    )
    assert set(uris(source_table)) == {"train/1.jpg", "train/2.jpg"}
    reasons = [row["reason"] for row in source_table.refused.to_pylist()]
    assert sorted(reasons) == [
        "an earlier row has this name; name rows by data.columns.key",
        "column 'file' has no value",
        "column 'kind' has no value",
        "image: No such file or directory",
        "image: a folder, not a file",
        "image: a pipe, not a file",
    ]


@every_suffix
def test_a_column_may_name_samples_and_another_their_split(tmp_path, suffix):
    make_tree(tmp_path, "1.jpg", "2.jpg")
    values = {
        "file": ["1.jpg"] * 6, "kind": ["x", "y", "x", "y", "x", "y"],
        "id": ["a", "b", "c", "d", "e", "e"],
        "part": ["train", "train", "val", "test", "other", "train"],
    }  # fmt: skip
    columns = {"image": "file", "key": "id", "split": "part"}
    path = write_listing(tmp_path, suffix, values)
    source_table = listed(path, columns=columns, target={"column": "kind"})
    assert uris(source_table, "validation") + uris(source_table, "test") == [
        "validation/c",
        "test/d",
    ]
    assert set(uris(source_table, "train")) == {"train/a", "train/b", "train/e"}
    assert refused(source_table) == {"train/e": "split 'other' is none of train, validation, test"}
    assert set(source_table.roots) == {"train", "validation", "test"}
    message = refusal(path, columns=columns, target={"column": "kind"}, validation=0.5)
    assert "columns.split names the splits; leave validation and test null" in message


def test_the_order_and_what_is_held_out_are_drawn_by_hash(tmp_path):
    names = [f"{number}.jpg" for number in range(40)]
    make_tree(tmp_path, *names)
    path = write_listing(tmp_path, ".csv", {"file": names, "kind": ["x"] * 30 + ["y"] * 10})
    source_table = listed(path, validation=0.2, **IMAGE_ROWS)
    assert source_table.counts() == {"train": 32, "validation": 8}
    assert sorted(classes_of(source_table, "validation").values()) == ["x"] * 6 + ["y"] * 2
    assert uris(source_table, "train") != sorted(
        uris(source_table, "train"), key=lambda uri: int(uri[6:-4])
    )
    assert source_table.roots["validation"] == str(tmp_path)


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    make_tree(tmp_path, *map(str, range(12)))
    files = list(map(str, range(12)))
    for suffix, kinds in ((".csv", files), (".parquet", list(range(12)))):
        source_table = listed(
            write_listing(tmp_path, suffix, {"file": files, "kind": kinds}), **IMAGE_ROWS
        )
        assert source_table.classes == tuple(files)


@every_suffix
def test_booleans_are_classes_of_one_spelling(tmp_path, suffix):
    make_tree(tmp_path, "1", "2")
    path = write_listing(tmp_path, suffix, {"file": ["1", "2"], "kind": [True, False]})
    assert listed(path, **IMAGE_ROWS).classes == ("false", "true")


def test_numbers_of_named_classes_may_stand_beside_names_and_nothing_else(tmp_path):
    make_tree(tmp_path, "1", "2", "3")
    options = {
        "columns": {"image": "file", "split": "part"},
        "target": {"column": "kind", "classes": ["cat", "owl"]},
    }
    values = {"file": ["1", "2", "3"], "part": ["train", "train", "val"]}
    path = write_listing(tmp_path, ".csv", {**values, "kind": ["0", "1", "emu"]})
    assert refusal(path, **options) == "data.target.classes: lacks 'emu', which validation has"
    path = write_listing(tmp_path, ".csv", {**values, "kind": ["0", "1", "owl"]})
    assert classes_of(listed(path, **options)) == {
        "train/1": "cat", "train/2": "owl", "validation/3": "owl",
    }  # fmt: skip


# --- values in line ---


@every_suffix
def test_texts_lie_in_the_rows_and_keep_their_order(tmp_path, suffix):
    words = [f'text, number {n}\nwith "quotes" and é' for n in range(10)]
    path = write_listing(tmp_path, suffix, {"words": words, "kind": ["x", "y"] * 5, "more": words})
    source_table = listed(path, ("text",), validation=0.3, **TEXT_ROWS)
    assert source_table.counts() == {"train": 6, "validation": 4}
    assert source_table.of_split("train")["row"].to_pylist() == sorted(
        source_table.of_split("train")["row"].to_pylist()
    )
    for row in planned(source_table, tmp_path):
        assert row.inline == {"text": words[row.row].encode()}
        assert row.uri == f"{row.split}/rows{suffix}#{row.row}"
        assert row.target == row.row % 2 and row.parts == ()
    copies = [path.name for path in plan_files(tmp_path / "plan" / "p.parquet")[1:]]
    wanted = [] if suffix == ".parquet" else ["p.parquet.train.values.parquet"]
    assert [name for name in copies if "train" in name] == wanted


@every_suffix
def test_table_rows_are_numbers_and_names(tmp_path, suffix):
    values = {
        "age": [1.5, None, 3.0, 4.25],
        "town": ["Oslo", "Bergen", None, "Oslo"],
        "kind": list("xyxy"),
    }
    path = write_listing(tmp_path, suffix, values)
    source_table = listed(path, (), table=TABLE_COLUMNS, target={"column": "kind"})
    assert [row.values for row in planned(source_table, tmp_path)] == [
        {"table": {"age": age, "town": town}}
        for age, town in zip(values["age"], values["town"], strict=True)
    ]
    seen = pa.Table.from_batches(iter_values(source_table, "train", ["age", "town"]))
    assert seen.to_pydict() == {name: values[name] for name in ("age", "town")}


def test_numbers_that_are_none_are_refused_and_missing_ones_are_not(tmp_path):
    (tmp_path / "rows.csv").write_text("age,town,kind\n1,a,x\nold,b,y\n,c,y\ninf,d,y\n2,e,y\n")
    source_table = listed(tmp_path / "rows.csv", (), table=TABLE_COLUMNS, target={"column": "kind"})
    assert source_table.table["row"].to_pylist() == [0, 2, 4]
    message = "column 'age' holds what is no number within float32"
    assert refused(source_table) == {"train/rows.csv#1": message, "train/rows.csv#3": message}


@every_suffix
def test_texts_that_stand_for_no_number_are_missing_in_every_format(tmp_path, suffix):
    given = ["1.5", "nan", "NaN", "NA", "null", "N/A", "1_000", "1e308", "-1e38"]
    values = {"age": given, "town": ["NA", "None", "na"] * 3, "kind": list("xyxyxyxyx")}
    path = write_listing(tmp_path, suffix, values)
    source_table = listed(path, (), table=TABLE_COLUMNS, target={"column": "kind"})
    seen = pa.Table.from_batches(iter_values(source_table, "train", ["age", "town"])).to_pydict()
    assert seen == {
        "age": [1.5, None, None, None, None, None, -1e38],
        "town": [None, None, "na", None, None, "na", "na"],
    }
    message = "column 'age' holds what is no number within float32"
    assert set(refused(source_table).values()) == {message} and len(refused(source_table)) == 2


def test_columns_of_other_arrow_types_are_read(tmp_path):
    moments = [1_700_000_000_123_456_789, 1_700_000_000_123_456_000, None, 0]
    table = pa.table(
        {
            "age": pa.array(moments, pa.timestamp("ns")),
            "height": pa.nulls(4),
            "town": pa.array(["a", None, "b", "a"], pa.string_view()),
            "kind": pa.array(list("xyxy"), pa.string_view()),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = {"numeric": ["age", "height"], "categorical": ["town"]}
    source_table = listed(tmp_path / "rows.parquet", (), table=columns, target={"column": "kind"})
    assert not refused(source_table)
    seen = pa.Table.from_batches(iter_values(source_table, "train", ["age", "height", "town"]))
    assert seen.to_pydict() == {
        "age": [1_700_000_000.123456789, 1_700_000_000.123456, None, 0.0],
        "height": [None] * 4,
        "town": ["a", None, "b", "a"],
    }


@pytest.mark.parametrize(
    ("kind", "ticks", "seconds"),
    [
        (pa.date32(), [1, -500_000_000], [86_400.0, -43_200_000_000_000.0]),
        (pa.date64(), [86_400_000], [86_400.0]),
        (pa.timestamp("s", "UTC"), [2**40], [2.0**40]),
        (pa.timestamp("ms"), [1_500], [1.5]),
        (pa.timestamp("ns"), [-1, 2_000], [-1e-9, 2e-6]),
        (pa.time32("s"), [1_500], [1_500.0]),
        (pa.time64("ns"), [3], [3e-9]),
    ],
)
def test_dates_and_times_are_seconds(kind, ticks, seconds):
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    values, wrong = to_role(pa.array([*ticks, None], width).cast(kind), "number", ";")
    assert values.to_pylist() == [*seconds, None] and not wrong.any()


def test_bytes_lie_in_parquet_files(tmp_path):
    images = [os.urandom(50) for _ in range(9)]
    path = write_listing(tmp_path, ".parquet", {"file": images, "kind": ["x", "y", "x"] * 3})
    source_table = listed(path, **IMAGE_ROWS)
    assert [row.inline["image"] for row in planned(source_table, tmp_path)] == images
    before = source_table.state_digest
    write_listing(tmp_path, ".parquet", {"file": images[::-1], "kind": ["x", "y", "x"] * 3})
    os.utime(path, (1, 1))
    assert listed(path, **IMAGE_ROWS).state_digest != before


@every_suffix
@pytest.mark.parametrize(
    ("target", "column", "wanted"),
    [
        ({"kind": "multi_label", "column": "t"}, ["a;b", "b; c", "", "a"],
         [["a", "b"], ["b", "c"], [], ["a"]]),
        ({"kind": "regression", "column": "t"}, [1.0, 2.5, -3.0, 0.0],
         [[1.0], [2.5], [-3.0], [0.0]]),
        ({"kind": "regression", "columns": ["t", "n"]}, [1.0, 2.5, -3.0, 0.0],
         [[1.0, 0.0], [2.5, 1.0], [-3.0, 2.0], [0.0, 3.0]]),
        ({"kind": "none"}, [1] * 4, [None] * 4),
    ],
)  # fmt: skip
def test_targets_in_columns(tmp_path, suffix, target, column, wanted):
    make_tree(tmp_path, "1", "2", "3", "4")
    path = write_listing(tmp_path, suffix, {"file": list("1234"), "t": column, "n": list(range(4))})
    source_table = listed(path, columns={"image": "file"}, target=target)
    assert source_table.classes == (("a", "b", "c") if target["kind"] == "multi_label" else ())
    got = {row.parts[0].path: row.values.get("target") for row in planned(source_table, tmp_path)}
    assert got == dict(zip("1234", wanted, strict=True))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_targets_that_are_lists(tmp_path, suffix):
    make_tree(tmp_path, "1", "2")
    values = {"file": ["1", "2"], "names": [["b"], ["a", "b"]], "tokens": [[1, 2], [3]]}
    values["numbers"] = [[1.5, 2.0], [3.0, 4.0]]
    path = write_listing(tmp_path, suffix, values)
    for kind, column in (("multi_label", "names"), ("tokens", "tokens"), ("regression", "numbers")):
        source_table = listed(
            path, columns={"image": "file"}, target={"kind": kind, "column": column}
        )
        assert [row.values["target"] for row in planned(source_table, tmp_path)] == values[column]


def test_tokens_may_be_a_text_and_masks_files(tmp_path):
    make_tree(tmp_path, "1", "2", "m1")
    path = write_listing(
        tmp_path, ".csv", {"file": ["1", "2"], "t": ["héllo", "x"], "m": ["m1", "m2"]}
    )
    source_table = listed(path, columns={"image": "file"}, target={"kind": "tokens", "column": "t"})
    assert [row.inline["target"] for row in planned(source_table, tmp_path)] == [
        "héllo".encode(),
        b"x",
    ]
    source_table = listed(path, columns={"image": "file"}, target={"kind": "mask", "column": "m"})
    assert paths(source_table, "mask") == {"train/1": "m1"}
    assert refused(source_table) == {"train/2": "mask: No such file or directory"}


# --- digests, resumption ---


@every_suffix
def test_digests_follow_the_values(tmp_path, suffix):
    values = {"words": ["a", "b", "c"], "kind": ["x", "y", "x"], "note": ["1", "2", "3"]}
    first = listed(write_listing(tmp_path / "a", suffix, values), ("text",), **TEXT_ROWS)
    copied = listed(write_listing(tmp_path / "b", suffix, values), ("text",), **TEXT_ROWS)
    assert (copied.content_digest, copied.state_digest) == (
        first.content_digest,
        first.state_digest,
    )
    for column, value in (("words", ["a", "B", "c"]), ("kind", ["x", "x", "y"])):
        other = listed(
            write_listing(tmp_path / "c", suffix, {**values, column: value}), ("text",), **TEXT_ROWS
        )
        assert other.content_digest != first.content_digest
    changed = other.table["values_digest"].to_pylist()
    assert changed == first.table["values_digest"].to_pylist(), "the class is in target"


def test_copies_of_values_are_the_same_bytes(tmp_path):
    values = {"words": [f"w{n}" for n in range(3000)], "kind": ["x", "y"] * 1500}
    source_table = listed(write_listing(tmp_path, ".csv", values), ("text",), **TEXT_ROWS)
    sums = []
    for name in ("a", "b"):
        write_plan(source_table, tmp_path / name / "p.parquet", 100)
        sums.append([zlib.crc32(f.read_bytes()) for f in plan_files(tmp_path / name / "p.parquet")])
    # The plan names its copy, so it alone differs.
    assert sums[0][1:] == sums[1][1:] and len(sums[0]) == 2


def test_a_copied_parquet_file_of_bytes_has_the_same_content_and_another_state(tmp_path):
    images = [os.urandom(50) for _ in range(9)]
    values = {"file": images, "kind": ["x", "y", "x"] * 3}
    path = write_listing(tmp_path / "a", ".parquet", values)
    copy = tmp_path / "b" / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    os.utime(copy, (1, 1))
    first, copied = listed(path, **IMAGE_ROWS), listed(copy, **IMAGE_ROWS)
    assert copied.content_digest == first.content_digest
    assert copied.state_digest != first.state_digest
    other = write_listing(
        tmp_path / "c", ".parquet", {**values, "file": [*images[:8], b"longer" * 20]}
    )
    assert listed(other, **IMAGE_ROWS).content_digest != first.content_digest


def test_a_listing_may_lie_at_a_url(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/lists/rows.csv", b"file,kind\nimg/1.jpg,x\nmemory://lists/2.jpg,y\n")
    source_table = listed("memory://lists/rows.csv", **IMAGE_ROWS)
    assert set(uris(source_table)) == {"train/img/1.jpg", "train/memory://lists/2.jpg"}
    assert source_table.roots == {"train": "memory://lists"}
