"""Secrets in addresses: found in any text, and no part of what a source is."""

import contextlib
import sys

import pytest

from cluster.errors import ClusterError
from pipeline.cli.main import main
from pipeline.errors import GateRefusedError, UserError
from pipeline.runs.console import logged
from pipeline.runs.records import write_json
from shards.errors import ShardError
from shards.redaction import is_redacted, redacted, redacted_tree, shortened, without_secrets
from shards.retries import Retry

SECRET = "hunter2"
ADDRESS = "http://user:hunter2@127.0.0.1:1"


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("http://user:hunter2@host:80/a.csv?id=7", "http://host:80/a.csv?id=7"),
        ("http://hunter2@host/a", "http://host/a"),
        ("http://user:p@hunter2@host/a@2x.png", "http://host/a@2x.png"),
        ("postgresql+psycopg2://user:a/hunter2#@host/db", "postgresql+psycopg2://host/db"),
        ("simplecache::https://u:hunter2@host/a", "simplecache::https://host/a"),
        ("https://host/a?sig=hunter2&se=2030&sp=r&sv=1&id=7", "https://host/a?id=7"),
        (
            "https://b.s3.amazonaws.com/a?X-Amz-Algorithm=AWS4&X-Amz-Date=1&X-Amz-Expires=9"
            "&X-Amz-Credential=hunter2&X-Amz-Signature=hunter2&versionId=3",
            "https://b.s3.amazonaws.com/a?versionId=3",
        ),
        ("https://host/a?GoogleAccessId=me&Expires=9&Signature=hunter2", "https://host/a"),
        ("https://host/a?Policy=p&Key-Pair-Id=k&Signature=hunter2", "https://host/a"),
        ("https://host/a?id=7&access_token=hunter2", "https://host/a?id=7"),
        ("https://host/a?apiKey=hunter2", "https://host/a"),
        ("https://host/a?key=hunter2hunter2hunter2", "https://host/a"),
        ("https://host/a?url=https%3A%2F%2Fu%3Ahunter2%40h%2F%3Fsig%3Dhunter2%26id%3D2",
         "https://host/a?url=https%3A%2F%2F***%40h%2F%3Fsig%3D***%26id%3D2"),
        ("mssql://?odbc_connect=PWD%3Dhunter2", "mssql://"),
    ],
)  # fmt: skip
def test_an_address_is_named_without_its_secrets(address, named):
    assert without_secrets(address) == named
    assert without_secrets(redacted(address)) == without_secrets(named)
    text = f"data.train={address}: cannot be read (url='{address}')"
    assert SECRET in text and SECRET not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)
    assert is_redacted(redacted(address)) and not is_redacted(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://host:8080/a@2x.png", "http://[::1]:80/x@y", "https://host/a?id=7&page=2&sp=1",
        "https://host/get?file=a%20b.png", "https://host/get?key=images/1.png", "/a:b@c/d?token=x",
        "abfs://container@account.dfs.core.windows.net/a", "s3://bucket/a?versionId=3",
        "https://host/a?date=2020-01-01",
    ],
)  # fmt: skip
def test_what_names_content_is_no_secret(address):
    assert without_secrets(address) == address
    if "token" not in address:
        assert redacted(address) == address and not is_redacted(address)


@pytest.mark.parametrize("kind", [UserError, GateRefusedError, ShardError, ClusterError])
def test_errors_leave_secrets_out(kind):
    error = kind("tracking.uri=http://user:hunter2@host: does not answer (/api?token=hunter2 )")
    assert str(error) == "tracking.uri=http://***@host: does not answer (/api?token=*** )"
    assert SECRET not in repr(error)


def test_a_path_that_looks_like_a_query_stays_as_it_is():
    path = "/runs/exp?token=hunter2/shards"
    assert redacted_tree({"shards": path}) == {"shards": path}
    told = f"no answer for {ADDRESS[7:]}/api?token=hunter2"
    assert redacted_tree([told])[0].endswith("/api?token=***")


def test_records_of_stages_hold_no_secrets(tmp_path):
    write_json(tmp_path / "x.json", {"failed": [f"{ADDRESS}: no answer"], "score": float("nan")})
    assert (tmp_path / "x.json").read_text().count("http://***@127.0.0.1:1: no answer") == 1


def test_trees_are_redacted_to_their_leaves():
    address = "http://user:hunter2@host"
    tree = {"a": [address, 1, None], address: {"b": (address,)}}
    assert redacted_tree(tree) == {
        "a": ["http://***@host", 1, None],
        "http://***@host": {"b": ("http://***@host",)},
    }


@pytest.mark.parametrize(
    "args",
    [
        ["config", "digits", f"tracking.uri={ADDRESS}"],
        ["config", "digits", f"tracking.uri={ADDRESS}", "--json"],
        ["config", "digits", f"data.train.x={ADDRESS}"],
        ["config", "digits", f"data.layout={'x' * 60}{ADDRESS}"],
        ["config", f"{ADDRESS}/x.yaml"],
        ["config", "digits", f"--wrong={ADDRESS}"],
        ["config", "digits", f"tracking.uri: [{ADDRESS}"],
        ["config", "digits", f"data.samples_per_shard=[{'x' * 60} {ADDRESS}"],
        ["preprocess", "digits", f"data.train={ADDRESS}/rows.csv", "--debug"],
        ["preprocess", "digits", f"data.train=no-such-scheme{ADDRESS[4:]}", "--debug"],
        ["verify", f"{ADDRESS}/shards?sig=hunter2", "--json"],
        ["inspect", f"{ADDRESS}/shards", "--debug"],
        ["promote", "0" * 32, "--tracking-uri", ADDRESS, "--debug"],
        ["promote", "0" * 32, "--tracking-uri", "postgresql://u:hunter2@127.0.0.1:1/x", "--debug"],
        ["retry-quarantine", f"{ADDRESS}/shards"],
    ],
)  # fmt: skip
def test_no_verb_shows_a_secret_in_an_address(args, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("shards.location.Retry", lambda: Retry(attempts=1))
    monkeypatch.setattr("pipeline.preprocess.sources.parts.RETRY", Retry(attempts=1))
    with contextlib.suppress(SystemExit):
        main(args)
    shown = capfd.readouterr()
    assert shown.out + shown.err
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET not in shown.out + shown.err
    assert SECRET.encode() not in written


def test_what_libraries_print_is_logged_without_secrets(tmp_path, capfd):
    with capfd.disabled(), logged({"as_json": False}, tmp_path, "train") as console:
        print("View run at http://user:hunter2@", end="")
        print("host/#/experiments")
        print("retrying /api?token=hunter2", file=sys.stderr)
        print("http://user:hunter2@host, without an end", end="", file=sys.stderr)
    assert console.log is not None
    text = console.log.read_text()
    assert "http://***@host/#/experiments\n" in text and "retrying /api?token=***\n" in text
    assert text.endswith("http://***@host, without an end")


@pytest.mark.parametrize("length", range(10, 60))
def test_what_is_cut_is_redacted_before(length):
    told = shortened(f"a request to {ADDRESS}/api?token=hunter2 failed\nfor good", length)
    assert len(told) <= length and "hunt" not in told and "\n" not in told
