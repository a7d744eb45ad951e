"""Sources dealt out to many partitions give the same set as in one; digests of old sets stay."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_trees import TABLE_COLUMNS, data_config, listed, make_files, make_tar, make_tree

from pipeline.preprocess.sources import (
    SourceTable,
    TableStore,
    fit_rows,
    list_sources,
    partitions,
    plan,
    read_plan,
    stored_tables,
    write_plan,
)

GROUP = r"/(\d\d)\d\.png$"


def folder(root: Path) -> Path:
    make_files(root / "f", {"a": 90, "b": 60, "c": 3})
    return make_tree(root / "f", "stray.txt", "a/.hidden")


def of_folder(root: Path, **data: str) -> SourceTable:
    return listed(folder(root), validation=0.2, **data)


def csv(root: Path) -> Path:
    path = root / "rows.csv"
    splits = ["train", "val", "test", "oops"]
    rows = [f"n{i % 190},text {i} {'x' * (i % 7)},{i % 5},{splits[i % 11 % 4]}" for i in range(200)]
    path.write_text("\n".join(["id,words,kind,part", *rows, ""]))
    return path


def pairs(root: Path) -> SourceTable:
    names = [f"k{i % 4}/{i:03d}.{end}" for i in range(120) for end in ("png", "txt")]
    more = ("k1/only.png", "k2/two.png", "k2/two.jpg", "k2/two.txt")
    make_tree(root / "pair", *names, *more)
    return listed(root / "pair", ("image", "text"), validation=0.25, seed=3)


def parquet(root: Path) -> SourceTable:
    labels = [["a", "b"][: i % 3] for i in range(300)]
    table = pa.table({"words": [f"w{i}" for i in range(300)], "labels": labels})
    pq.write_table(table, root / "rows.parquet", row_group_size=70)
    target = {"kind": "multi_label", "column": "labels"}
    columns = {"text": "words"}
    return listed(root / "rows.parquet", ("text",), columns=columns, target=target, validation=0.1)


def tars(root: Path) -> SourceTable:
    for number in range(3):
        members = {
            f"d/{i:03d}.{end}": str(i % 3).encode() if end == "cls" else b"x" * i
            for i in range(60)
            for end in ("png", "cls")
        }
        make_tar(root / "t" / f"{number}.tar", {**members, "d/zz.png": b"1"})
    return listed(root / "t", layout="tars", validation=0.2)


def known(root: Path) -> SourceTable:
    splits = ["validation" if i % 2 else "train" for i in range(80)]
    uris = [f"{split}/a/{i:03d}.png".encode() for i, split in enumerate(splits)]
    table = pa.table({"uri": pa.array(uris, pa.binary()), "split": splits})
    return listed(folder(root), validation=0.2, known=table, known_classes=("c", "b", "a"))


def of_csv(columns: dict[str, str], **data: object) -> Callable[[Path], SourceTable]:
    target = {"kind": "class", "column": "kind"}
    given = {"columns": {"text": "words", **columns}, "target": target, **data}
    return lambda root: listed(csv(root), ("text",), **given)


LAYOUTS: dict[str, tuple[Callable[[Path], SourceTable], str]] = {
    "folder": (of_folder, "e4f3bf0d74d1aff1d33db960dc3afa91"),
    "groups": (partial(of_folder, group=GROUP), "d4c6a26f55b07535875b5ca59a6c6e55"),
    "pairs": (pairs, "fad09ae8c6a3f6ae6eacbec40b84c710"),
    "csv": (of_csv({"key": "id", "split": "part"}), "cccf1739f961494ebb49dff1a06e3fd9"),
    "csv-share": (of_csv({"key": "id"}, validation=0.3), "d49af8f34351f0aa4b4c1104784ccee2"),
    "csv-groups": (of_csv({}, group="id", validation=0.3), "50a671d419b9eefc0c18f7a174fdfcf3"),
    "parquet": (parquet, "f31d711f15b273154b6b6e825f449378"),
    "tars": (tars, "4c6ab72acb88f51c6fd0ce2ddc46c76f"),
    "known": (known, "8d365d4c54d63496e17d680ccdab6f41"),
}  # fmt: skip
"""Ways to list sources, and the digests that they had before there were partitions."""


@pytest.fixture(params=[False, True], ids=["one partition", "many partitions"])
def in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(partitions, "ROWS", 13)
        monkeypatch.setattr(partitions, "MANY_PARTITIONS", 1 << 40)
        monkeypatch.setattr(stored_tables, "BYTES_IN_MEMORY", 0)
        monkeypatch.setattr(plan, "SHARDS_IN_A_FILE", 3)
    return request.param


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_digest_is_that_of_older_sets(tmp_path: Path, name: str, in_parts: bool) -> None:
    make, digest = LAYOUTS[name]
    source_table = make(tmp_path)
    assert source_table.content_digest.startswith(digest)
    assert (len(source_table.chunks) > 5) == in_parts
    assert sum(source_table.counts().values()) == source_table.num_rows


def test_long_names_lie_in_more_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An Arrow array of names holds 2 GiB. Here the limit is lower.
    monkeypatch.setattr(partitions, "MOST_BYTES", 4000)
    make, digest = LAYOUTS["csv-share"]
    source_table = make(tmp_path)
    assert len(source_table.chunks) > 3
    assert source_table.content_digest.startswith(digest)


def test_a_plan_lists_the_sources_in_their_order(tmp_path: Path, in_parts: bool) -> None:
    source_table = pairs(tmp_path)
    count = write_plan(source_table, tmp_path / "plan.parquet", 10)
    assert count == 9 + 4
    planned = [row for n in range(count) for row in read_plan(tmp_path / "plan.parquet", n)]
    assert [row.uri.encode() for row in planned] == source_table.table["uri"].to_pylist()
    assert [len(row.parts) for row in planned] == [2] * 120


def test_a_fit_sees_each_training_row_once(tmp_path: Path, in_parts: bool) -> None:
    rows = "".join(f"{i},{'ab'[i % 2]},{i % 3}\n" for i in range(90))
    (tmp_path / "rows.csv").write_text("age,town,kind\n" + rows)
    source_table = listed(
        tmp_path / "rows.csv", (), table=TABLE_COLUMNS, target={"column": "kind"}, validation=0.3
    )
    config = data_config(
        tmp_path / "rows.csv", (), table=TABLE_COLUMNS, target={"column": "kind"}, validation=0.3
    )
    train = [uri.decode() for uri in source_table.of_split("train")["uri"].to_pylist()]
    ages = [int(uri.partition("#")[2]) for uri in train]
    fitted = fit_rows(source_table, config.data.formats["table"])
    assert fitted["mean"] == [pytest.approx(sum(ages) / len(ages))]


def test_tables_go_to_files_and_the_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tables, "BYTES_IN_MEMORY", 60)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = pa.table({"n": [1, 2], "more": ["a", "b"]})
    with TableStore() as store:
        held = [store.put(table) for _ in range(5)]
        assert all(each.load().equals(table) for each in held)
        assert held[4].load(["more"]).column_names == ["more"]
        assert len(list(tmp_path.rglob("*.arrow"))) == 3
        del held
        assert not list(tmp_path.rglob("*.arrow"))
    assert not list(tmp_path.iterdir())


def test_large_sources_are_listed_by_ray_tasks(
    tmp_path: Path, ray_cluster: None, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tables, "ROWS_HERE", 0)
    here = of_csv({"key": "id"}, validation=0.3)(tmp_path)
    target = {"kind": "class", "column": "kind"}
    columns = {"text": "words", "key": "id"}
    config = data_config(
        tmp_path / "rows.csv", ("text",), columns=columns, target=target, validation=0.3
    )
    with TableStore(contextlib.nullcontext) as store:
        there = list_sources(config, store=store)
        assert not isinstance(there.chunks[0].stored._held, pa.Table)
        assert there.content_digest == here.content_digest
        assert write_plan(there, tmp_path / "plan.parquet", 10) == 14 + 6
        assert len(read_plan(tmp_path / "plan.parquet", 13)) == 5
