"""Passwords and signatures of sources: used where they are needed, and written nowhere."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from gate_runs import new_model, some_rows, table_config, track, write_run, write_table_set
from photos import encoded
from PIL import Image
from shard_server import ShardServer
from source_trees import listed, make_tar, make_tree, paths, refusal, refused, uris, write_listing

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess import build
from pipeline.preprocess.preprocess import preprocess, report, retry_quarantine
from pipeline.preprocess.sources import (
    SourceFile,
    plan_files,
    read_part,
    read_plan,
    shard_addresses,
    write_plan,
)
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.tracking import open_run
from shards import ShardSet
from shards.quarantine import read_quarantine

SECRET = "hunter2"
ROWS = {"columns": {"image": "file"}, "target": {"kind": "none"}}


def text_of(path: Path) -> str:
    """What a file holds, also where Parquet has compressed it."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return f"{table.schema.metadata} {table.schema} {table.to_pylist()}"
    return path.read_bytes().decode("latin-1")


def holding_secrets(folder: Path, secret: str = SECRET) -> list[str]:
    """The files below a folder whose content or name holds a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if secret in str(path) or secret in text_of(path)]


def admitted(path: str, headers: dict[str, str]) -> bool:
    """Whether a request has the user's name and password, and a token."""
    basic = base64.b64encode(b"user:hunter2").decode()
    return headers.get("Authorization") == f"Basic {basic}" and "token=hunter2" in path


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[ShardServer, Path]]:
    """A server that answers who has a password and a token, and its folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    with ShardServer(folder) as server:
        server.admits = admitted
        yield server, folder


def with_secrets(url: str, name: str) -> str:
    return f"{url.replace('http://', 'http://user:hunter2@')}/{name}?token=hunter2"


# --- listing ---


def test_what_gives_access_to_a_listing_goes_with_its_rows(guarded):
    server, folder = guarded
    make_tree(folder, "a/1.png", "a b#.png", "c/2.png")
    files = ["a/1.png", "a b#.png", f"{server.url}/c/2.png", f"{server.url}/c/2.png?id=7"]
    write_listing(folder, ".csv", {"file": files})
    source_table = listed(with_secrets(server.url, "rows.csv"), **ROWS)
    assert set(uris(source_table)) == {f"train/{name}" for name in files}
    assert source_table.roots == {"train": server.url}
    for path in paths(source_table).values():
        assert read_part(
            source_table.reaches["train"], SourceFile("image", path, None, None, -1, "")
        )


def test_tars_and_parquet_may_be_guarded_too(guarded, tmp_path):
    server, folder = guarded
    make_tar(folder / "set" / "a-0.tar", {"1.png": b"one", "2.png": b"two"})
    make_tar(folder / "set" / "a-1.tar", {"3.png": b"three"})
    source_table = listed(with_secrets(server.url, "set/a-{0,1}.tar"), target={"kind": "none"})
    assert set(uris(source_table)) == {"train/a-0.tar/1", "train/a-0.tar/2", "train/a-1.tar/3"}
    plan = tmp_path / "plan.parquet"
    write_plan(source_table, plan, 9)
    found = [read_part(source_table.reaches["train"], row.parts[0]) for row in read_plan(plan, 0)]
    assert sorted(found) == [b"one", b"three", b"two"]
    write_listing(folder, ".parquet", {"words": ["a", "b"], "kind": ["x", "y"]})
    source_table = listed(
        with_secrets(server.url, "rows.parquet"), ("text",), columns={"text": "words"},
        target={"column": "kind"},
    )  # fmt: skip
    write_plan(source_table, plan, 9)
    rows = read_plan(plan, 0, None, source_table.value_addresses)
    assert [row.inline for row in rows] == [{"text": b"a"}, {"text": b"b"}]
    assert not any(SECRET in text_of(file) for file in plan_files(plan)) and uris(source_table) == [
        "train/rows.parquet#0", "train/rows.parquet#1",
    ]  # fmt: skip


def signed(url: str, signature: str, name: str) -> str:
    return f"{url}/{name}?id=7&X-Amz-Date={signature}&X-Amz-Signature={signature}"


def test_a_source_that_is_signed_anew_is_the_same_source(tmp_path):
    make_tree(tmp_path / "web", "1.png", "2.png")
    digests, states, names = set(), set(), set()
    with ShardServer(tmp_path / "web") as server:
        server.admits = lambda path, headers: "X-Amz-Signature=hunter2" in path
        for signature in ("hunter2", "hunter2again"):
            rows = [signed(server.url, signature, name) for name in ("1.png", "2.png")]
            path = write_listing(tmp_path, ".csv", {"file": rows})
            source_table = listed(path, **ROWS, allow=[server.url])
            digests.add(source_table.content_digest)
            states.add(source_table.state_digest)
            names.update(uris(source_table))
            plan = tmp_path / "plan" / "p.parquet"
            assert write_plan(source_table, plan, 1) == 2
            addresses = shard_addresses(source_table, 1)
            assert addresses is not None
            for number, of_its_files in enumerate(addresses):
                (row,) = read_plan(plan, number, of_its_files)
                assert (
                    read_part(source_table.reaches["train"], row.parts[0])
                    == row.uri[-10:-5].encode()
                )
            assert not any(SECRET in text_of(file) for file in plan_files(plan))
        assert names == {f"train/{server.url}/{name}?id=7" for name in ("1.png", "2.png")}
    assert len(digests) == len(states) == 1


def test_a_query_that_names_content_tells_sources_apart(tmp_path):
    rows = [f"https://host/get?id={n}&sig=hunter{n}" for n in range(3)]
    path = write_listing(tmp_path, ".csv", {"file": [*rows, "https://host/get?id=1&sig=other"]})
    source_table = listed(path, **ROWS, allow=["https://host/"])
    assert set(uris(source_table)) == {f"train/https://host/get?id={n}" for n in range(3)}
    message = "an earlier row has this name; name rows by data.columns.key"
    assert refused(source_table) == {"train/https://host/get?id=1": message}


def test_refused_rows_and_errors_hold_no_secrets(tmp_path):
    rows = ["https://user:hunter2@host/1.png?sig=hunter2", "simplecache::https://u:hunter2@h/x",
            "s3://u:hunter2@bucket/1", "https://host/?a=b&password=hunter2"]  # fmt: skip
    make_tree(tmp_path, "1.png")
    path = write_listing(tmp_path, ".csv", {"file": ["1.png", *rows], "kind": ["x"] * 5})
    source_table = listed(path, **ROWS)
    assert source_table.refused.num_rows == 4
    assert SECRET not in str(source_table.refused.to_pylist())
    keyed = {"columns": {"image": "file", "key": "file"}, "target": {"kind": "none"}}
    assert SECRET not in str(listed(path, **keyed).refused.to_pylist())
    for source in ("http://user:hunter2@127.0.0.1:1/rows.csv?token=hunter2",
                   "no-such-scheme://user:hunter2@host/rows.csv",
                   "https://user:hunter2@host/folder/?token=hunter2",
                   "http://user:hunter2@127.0.0.1:1/a.tar?sig=hunter2"):  # fmt: skip
        assert SECRET not in refusal(source, **ROWS)


# --- sets and MLflow ---


def pictures(folder: Path, count: int) -> list[str]:
    """PNG files, one of them damaged."""
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        pixels = np.full((28, 28), number * 5, np.uint8)
        (folder / name).write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    (folder / names[0]).write_bytes(b"no picture")
    return names


def test_nothing_that_is_written_holds_a_secret_and_a_set_is_known_again(
    ray_cluster: None,
    guarded: tuple[ShardServer, Path],
    make_config: Callable[..., Config],
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, folder = guarded
    out = tmp_path / "out"
    names = pictures(folder, 8)
    rows = [f"{server.url}/{name}?id=1&token=hunter2" for name in names]
    write_listing(folder, ".csv", {"file": rows, "kind": ["x", "y"] * 4})

    def config(name: str) -> Config:
        return make_config(
            out, f"data.train={with_secrets(server.url, name)}", "data.columns.image=file",
            "data.target.column=kind", "data.validation=null", "data.test=null",
            f"data.allow=['{server.url.replace('//', '//user:hunter2@')}/']",
        )  # fmt: skip

    run_tasks = build.run_tasks

    def looked_at(*args):
        assert holding_secrets(out) == []  # the plan lies there now
        assert list(out.rglob("*.plan.parquet.*"))
        return run_tasks(*args)

    monkeypatch.setattr(build, "run_tasks", looked_at)
    made = preprocess(config("rows.csv"), console)
    report(made, console)
    assert made["counts"] == {"train": 7} and made["num_quarantined"] == 1
    assert SECRET not in json.dumps(made)
    shards = Path(made["shards"])
    (bad,) = read_quarantine(shards / "quarantine.parquet")
    assert bad.source_uri == f"train/{server.url}/0.png?id=1"

    # Another token: the same set.
    text = (folder / "rows.csv").read_text()
    (folder / "rows.csv").write_text(text.replace("token=hunter2", "token=hunter2anew"))
    again = preprocess(config("rows.csv"), console)
    assert again["skipped"] and again["digest"] == made["digest"]

    # Tried again, with the address that was not kept.
    with pytest.raises(UserError, match=r"is not kept; give the whole address: .* data\.train=URL"):
        retry_quarantine(str(shards), console)
    with pytest.raises(UserError, match=r"data\.allow names addresses whose password"):
        addresses = {"train": with_secrets(server.url, "rows.csv")}
        retry_quarantine(str(shards), console, sources=addresses)

    tracked = config("rows.csv").model_copy(
        update={"shards": f"http://user:hunter2@host/shards?sig={SECRET}"}
    )
    with open_run(tracked, kind="train", shard_set=ShardSet.open(shards)) as run:
        pass
    found = client(tracked.tracking_uri).get_run(run.run_id)
    assert found.data.params["data.train"].endswith("/rows.csv?token=***")
    assert found.data.tags["perceiver.shards"] == "http://***@host/shards?sig=***"
    (written,) = out.rglob("config.yaml")
    assert yaml.safe_load(written.read_text())["shards"] == "http://***@host/shards?sig=***"
    assert holding_secrets(out) == []
    assert SECRET not in (tmp_path / "console.txt").read_text()


def test_a_quarantined_source_is_tried_again_at_its_whole_address(
    ray_cluster: None,
    guarded: tuple[ShardServer, Path],
    make_config: Callable[..., Config],
    tmp_path: Path,
    console: Console,
) -> None:
    server, folder = guarded
    names = pictures(folder, 4)
    write_listing(folder, ".csv", {"file": names, "kind": ["x", "y"] * 2})
    address = with_secrets(server.url, "rows.csv")
    config = make_config(
        tmp_path / "out", f"data.train={address}", "data.columns.image=file",
        "data.target.column=kind", "data.validation=null", "data.test=null",
        "data.max_bad_fraction=0.9",
    )  # fmt: skip
    made = preprocess(config, console)
    assert made["num_quarantined"] == 1
    (folder / names[0]).write_bytes((folder / names[1]).read_bytes())
    tried = retry_quarantine(made["shards"], console, sources={"train": address})
    assert tried["num_quarantined"] == 0 and tried["counts"] == {"train": 4}
    assert holding_secrets(tmp_path / "out") == []


def test_a_run_on_a_guarded_set_is_promoted_with_the_address_given_again(
    guarded: tuple[ShardServer, Path], tmp_path: Path, console: Console
) -> None:
    server, folder = guarded
    server.admits = lambda path, headers: admitted(f"{path}?token=hunter2", headers)
    config = table_config(folder, "set")
    local = write_table_set(config, some_rows(0, 60), some_rows(60, 90))
    address = f"{server.url.replace('//', '//user:hunter2@')}/set/shards"
    config = table_config(tmp_path / "out", "first").model_copy(update={"shards": address})
    run_id = write_run(config, ShardSet.open(address), new_model(config, local).state_dict())
    track(config.tracking_uri)
    mlflow_client = client(config.tracking_uri)
    with pytest.raises(UserError, match=r"http://\*\*\*@.* is not kept; .* with --shards"):
        promote(mlflow_client, run_id, console)
    made = promote(mlflow_client, run_id, console, shards=address)
    assert made["version"] == "1"
    assert holding_secrets(tmp_path / "out") == []
    assert SECRET not in (tmp_path / "console.txt").read_text()
