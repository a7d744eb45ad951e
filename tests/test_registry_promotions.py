"""Promotions that fail or meet each other, and rollbacks."""

import contextlib
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate_runs import (
    CLASSES,
    NAME,
    fitted_model,
    some_rows,
    table_config,
    without_class,
    write_run,
    write_table_set,
)

from pipeline.cli.main import main
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry import promote as promotion
from pipeline.registry import registration
from pipeline.registry.promote import promote
from pipeline.registry.registration import champion_of
from pipeline.registry.rollback import rollback
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client

ROWS = some_rows(0, 300)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A registry with runs of ever better models: of one class, of two, of all three."""
    output = tmp_path_factory.mktemp("registry")
    config = table_config(output, "first")
    shard_set = write_table_set(config, ROWS[:200], ROWS[200:])
    model = fitted_model(config, shard_set, ROWS[:200])
    two = without_class(model, CLASSES.index("odd"))
    one = {**two, "head.output.bias": two["head.output.bias"].clone()}
    one["head.output.bias"][0] = 1e3
    weights = (one, two, model.state_dict())
    runs = [write_run(config, shard_set, each) for each in weights]
    return {"output": output, "runs": runs}


class Registry:
    """A copy of the registry, which a test may spoil."""

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self.runs: list[str] = made["runs"]
        self.database = folder / "mlflow.db"
        shutil.copy(made["output"] / "mlflow.db", self.database)
        self.uri = f"sqlite:///{self.database}"
        self.client = client(self.uri)
        self.text = folder / "console.txt"

    def promote(self, run_id: str, **options: Any) -> dict[str, Any]:
        with self.text.open("a") as file:
            return promote(self.client, run_id, Console(file, file), **options)

    def champion(self, alias: str = "champion") -> str | None:
        version = champion_of(self.client, NAME, alias)
        return version and str(version.version)

    def versions(self) -> list[str]:
        found = self.client.search_model_versions(f"name='{NAME}'")
        return sorted(str(version.version) for version in found)

    @contextlib.contextmanager
    def refusing(self, statement: str) -> Iterator[None]:
        """The database refuses a kind of change, as one of a full disk."""
        self._execute(
            f"CREATE TRIGGER full BEFORE {statement} BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
        yield
        self._execute("DROP TRIGGER full")

    def _execute(self, statement: str) -> None:
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection:
            connection.execute(statement)
            connection.commit()


@pytest.fixture
def registry(made: dict[str, Any], tmp_path: Path) -> Registry:
    return Registry(tmp_path, made)


def test_a_database_that_fails_is_not_one_without_a_champion(registry: Registry) -> None:
    registry.promote(registry.runs[0])
    registry._execute("ALTER TABLE registered_model_aliases RENAME TO elsewhere")
    with pytest.raises(UserError, match=r"rows@champion: MLflow fails \(.*no such table"):
        registry.promote(registry.runs[2])
    registry._execute("ALTER TABLE elsewhere RENAME TO registered_model_aliases")
    assert registry.champion() == "1"
    assert registry.versions() == ["1"]


def test_a_missing_model_and_a_missing_alias_are_none(registry: Registry) -> None:
    assert registry.champion() is None
    registry.promote(registry.runs[0])
    assert registry.champion("other") is None


@pytest.mark.parametrize(
    ("statement", "versions"),
    [
        ("INSERT ON registered_model_aliases", ["1"]),
        ("INSERT ON model_version_tags", []),
        ("INSERT ON model_versions", []),
        ("INSERT ON registered_models", []),
    ],
)
def test_cut_off_anywhere_the_alias_stays_and_the_same_command_finishes_it(
    registry: Registry, statement: str, versions: list[str]
) -> None:
    with registry.refusing(statement):
        with pytest.raises(UserError, match="MLflow fails"):
            registry.promote(registry.runs[0])
        assert registry.champion() is None
        assert registry.versions() == versions
    result = registry.promote(registry.runs[0])
    assert (result["skipped"], result["version"]) == (False, "1")
    assert registry.champion() == "1"
    assert registry.versions() == ["1"]


def test_an_unfinished_version_is_judged_again_and_goes_if_it_is_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        registry.refusing("INSERT ON registered_model_aliases"),
        pytest.raises(UserError, match="disk is full"),
    ):
        registry.promote(registry.runs[1])
    monkeypatch.setattr(registration, "_WAIT_SECONDS", 0.0)
    registry.promote(registry.runs[2])
    with pytest.raises(GateRefusedError):
        registry.promote(registry.runs[1])
    assert registry.champion() == "2"
    assert registry.versions() == ["2"]


def test_a_note_that_cannot_be_made_is_made_by_the_next_promotion(registry: Registry) -> None:
    with registry.refusing("INSERT ON model_version_tags WHEN NEW.key = 'perceiver.promoted'"):
        assert registry.promote(registry.runs[0])["version"] == "1"
    assert "perceiver.promoted" not in registry.client.get_model_version(NAME, "1").tags
    assert registry.promote(registry.runs[0])["skipped"]
    assert "perceiver.promoted" in registry.client.get_model_version(NAME, "1").tags


def test_of_two_promotions_at_once_the_later_is_judged_against_the_earlier(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one promotion is about to move the alias, another, of a better model, moves it."""
    registry.promote(registry.runs[0])
    wait = promotion.wait_for_earlier

    def interrupted(*args: Any) -> None:
        monkeypatch.setattr(promotion, "wait_for_earlier", wait)
        monkeypatch.setattr(registration, "_WAIT_SECONDS", 0.0)
        assert registry.promote(registry.runs[2])["version"] == "3"

    monkeypatch.setattr(promotion, "wait_for_earlier", interrupted)
    with pytest.raises(GateRefusedError, match="rows version 3"):
        registry.promote(registry.runs[1])
    assert registry.champion() == "3"
    assert registry.versions() == ["1", "3"]


def test_a_promotion_waits_for_one_that_began_before_it(
    registry: Registry, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "_POLL_SECONDS", 0.05)
    registry.client.create_registered_model(NAME)

    def version(**tags: str) -> Any:
        return registry.client.create_model_version(
            NAME, "somewhere", tags={"perceiver.alias": "champion", **tags}, await_creation_for=0
        )

    def seconds(mine: Any, most: float) -> float:
        monkeypatch.setattr(registration, "_WAIT_SECONDS", most)
        started = time.monotonic()
        registration.wait_for_earlier(registry.client, mine, "champion", console)
        return time.monotonic() - started

    version(**{"perceiver.promoted": "long ago"})
    assert seconds(version(), 30.0) < 5, "nothing is in the making"
    mine = version()
    assert seconds(mine, 0.3) >= 0.3, "left unfinished, it is waited for in vain"
    thread = threading.Timer(
        0.5, lambda: registry.client.set_model_version_tag(NAME, "2", "perceiver.promoted", "now")
    )
    thread.start()
    assert 0.4 < seconds(mine, 30.0) < 20
    thread.join()
    version()
    assert seconds(mine, 30.0) < 5, "a later one waits for us"


def test_rollback_goes_back_one_promotion_at_a_time_to_the_first(registry: Registry) -> None:
    for run in registry.runs:
        registry.promote(run)
    assert registry.champion() == "3"
    back = rollback(registry.client, Console(), name=NAME, alias="champion")
    assert back == {
        "model_uri": f"models:/{NAME}@champion",
        "version": "2",
        "rolled_back": "3",
        "run_id": registry.runs[1],
    }
    rollback(registry.client, Console(), name=NAME, alias="champion")
    assert registry.champion() == "1"
    with pytest.raises(UserError, match=r"is version 1; there is no version before it"):
        rollback(registry.client, Console(), name=NAME, alias="champion")
    assert registry.champion() == "1"


def test_what_is_promoted_after_a_rollback_goes_back_to_where_that_led(
    registry: Registry,
) -> None:
    registry.promote(registry.runs[0])
    registry.promote(registry.runs[1])
    rollback(registry.client, Console(), name=NAME, alias="champion")
    assert registry.promote(registry.runs[2])["version"] == "3"
    assert registry.promote(registry.runs[2])["skipped"]
    rollback(registry.client, Console(), name=NAME, alias="champion")
    assert registry.champion() == "1"
    # A run that was rolled back may be promoted again, and rolled back again.
    assert registry.promote(registry.runs[2])["version"] == "4"
    rollback(registry.client, Console(), name=NAME, alias="champion")
    assert registry.champion() == "1"


def test_every_alias_goes_back_by_its_own_promotions(registry: Registry) -> None:
    registry.promote(registry.runs[0])
    registry.promote(registry.runs[1], alias="trial")
    registry.promote(registry.runs[2])
    rollback(registry.client, Console(), name=NAME, alias="champion")
    assert (registry.champion(), registry.champion("trial")) == ("1", "2")
    registry.client.set_registered_model_alias(NAME, "champion", "2")
    with pytest.raises(UserError, match="version 2, which was promoted to 'trial'"):
        rollback(registry.client, Console(), name=NAME, alias="champion")


def test_rollback_refuses_what_is_not_there_and_moves_nothing(registry: Registry) -> None:
    with pytest.raises(UserError, match="there is no such model or alias"):
        rollback(registry.client, Console(), name=NAME, alias="champion")
    registry.promote(registry.runs[0])
    registry.promote(registry.runs[1])
    registry.client.delete_model_version(NAME, "1")
    with pytest.raises(UserError, match="version 1, the version before it, was deleted"):
        rollback(registry.client, Console(), name=NAME, alias="champion")
    assert registry.champion() == "2"
    registry.promote(registry.runs[2])
    with (
        registry.refusing("UPDATE ON registered_model_aliases"),
        pytest.raises(UserError, match="disk is full"),
    ):
        rollback(registry.client, Console(), name=NAME, alias="champion")
    assert registry.champion() == "3"


def test_rollback_from_the_command_line(
    registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    for run in registry.runs:
        registry.promote(run)
    tracking = ["--tracking-uri", registry.uri]
    assert main(["promote", "--rollback", "--name", NAME, "--json", *tracking]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (result["version"], result["rolled_back"]) == ("2", "3")
    assert main(["promote", registry.runs[2], "--rollback", *tracking]) == 0
    assert "is version 1 again; version 2 is rolled back" in capfd.readouterr().out
    for arguments, message in (
        (["--rollback", "--name", NAME], "there is no version before it"),
        (["--rollback"], "name the registered model with --name"),
        (["--rollback", "--name", NAME, "--alpha", "0.5"], "--alpha: has no effect"),
        ([], "RUN is missing"),
    ):
        assert main(["promote", *arguments, *tracking]) == 2
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert message in line


@pytest.mark.parametrize(
    ("name", "alias"),
    [("a/b", "champion"), ("", "champion"), ("it's", "champion"), (NAME, "latest"), (NAME, "v3"),
     (NAME, "a b"), (NAME, "")],
)  # fmt: skip
def test_names_that_the_registry_would_refuse_are_refused_before_anything_is_made(
    registry: Registry, name: str, alias: str
) -> None:
    with pytest.raises(UserError, match=r"registry\."):
        registration.check_names(name, alias)
