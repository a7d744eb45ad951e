"""`perceiver preprocess` into object storage: what holds for a set in a folder holds for it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_incremental import samples_of

from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess import build
from pipeline.preprocess.preprocess import preprocess, retry_quarantine
from pipeline.runs.console import Console
from pipeline.training.open_shards import open_shards
from pipeline.training.train import train
from shards import ShardError, ShardSet, verify
from shards.manifest import MANIFEST_FILE
from shards.object_store import ObjectStore

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]


@pytest.fixture
def home(s3_bucket: str, tmp_path: Path) -> str:
    return f"{s3_bucket}/{tmp_path.name}"


@pytest.fixture
def config(make_config: MakeConfig, home: str, copied_digits: Path, tmp_path: Path) -> Config:
    """Digits in shards of 100, of files that a test may change, as a set in object storage."""
    return make_config(
        tmp_path / "out", f"data.train={copied_digits / 'train'}", "data.samples_per_shard=100",
        f"shards={home}/set",
    )  # fmt: skip


def steps_of(config: Config, console: Console, raw: Path) -> Iterator[dict[str, Any]]:
    """Make a set and change its sources again and again. Yield what each command returns."""
    yield preprocess(config, console)
    yield preprocess(config, console)
    Image.new("L", (28, 28), 77).save(raw / "0" / "new.png")
    (raw / "1" / "bad.png").write_bytes(b"no picture")
    yield preprocess(config, console)
    changed, gone = sorted(raw.glob("7/*.png"))[:2]
    Image.new("L", (28, 28), 5).save(changed)
    gone.unlink()
    yield preprocess(config, console)
    Image.new("L", (28, 28), 9).save(raw / "1" / "bad.png", format="png")
    yield retry_quarantine(config.shards_folder, console)
    yield preprocess(config, console, fresh=True)


def test_each_step_gives_the_same_set_as_in_a_folder(
    config: Config, make_config: MakeConfig, copied_digits: Path, digit_images: Path,
    console: Console, tmp_path: Path,
) -> None:  # fmt: skip
    import shutil

    shutil.copytree(digit_images / "train", tmp_path / "other")
    local = make_config(
        tmp_path / "local", f"data.train={tmp_path / 'other'}", "data.samples_per_shard=100"
    )
    ours = steps_of(config, console, copied_digits / "train")
    theirs = steps_of(local, console, tmp_path / "other")
    shown = ("digest", "counts", "num_quarantined", "decoded", "skipped")
    for found, expected in itertools.zip_longest(ours, theirs):
        assert {key: found[key] for key in shown} == {key: expected[key] for key in shown}
        assert verify(config.shards_folder) == []
    assert samples_of(config.shards_folder) == samples_of(local.shards_folder)
    more = make_config(
        tmp_path / "out", f"data.train={copied_digits / 'train'}", "data.samples_per_shard=100",
        f"shards={config.shards_folder}", "model.positions.num_bands=4",
    )  # fmt: skip
    assert preprocess(more, console)["added_positions"] == 1
    assert verify(config.shards_folder) == []
    open_shards(more)
    assert preprocess(config, console)["added_positions"] == 0
    assert not [*(tmp_path / "out").rglob("*.tar")], "nothing is kept on this machine"


def test_a_build_that_was_cut_off_decodes_nothing_twice(
    config: Config, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def cut_off(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(build, "_check_bad", cut_off)
        with pytest.raises(KeyboardInterrupt):
            preprocess(config, console)
    store = ObjectStore(config.shards_folder)
    before = {name for name in store.sizes() if name.endswith(".tar")}
    assert len(before) == 4 and not store.exists(MANIFEST_FILE)
    with pytest.raises(ShardError, match="an unfinished shard set; run 'perceiver preprocess'"):
        ShardSet.open(config.shards_folder)
    kept = []
    with monkeypatch.context() as patch:
        run_tasks = build.run_tasks

        def noted(task: Any, *arguments: Any) -> None:
            kept.extend(task.staging.facts(number) is not None for number in range(4))
            run_tasks(task, *arguments)

        patch.setattr(build, "run_tasks", noted)
        preprocess(config, console)
    assert kept == [True] * 4
    assert verify(config.shards_folder) == []


def test_too_many_bad_files_leave_nothing(
    config: Config, copied_digits: Path, console: Console
) -> None:
    for number in range(10):
        (copied_digits / "train" / "0" / f"bad{number}.png").write_bytes(b"bad")
    strict = config.model_copy(
        update={"data": config.data.model_copy(update={"max_bad_fraction": 0.01})}
    )
    with pytest.raises(UserError, match=r"10 of 310 files \(3\.2%\)"):
        preprocess(strict, console)
    assert ObjectStore(config.shards_folder).sizes() == {}


def test_an_object_that_is_lost_or_cut_short_is_noticed(config: Config, console: Console) -> None:
    preprocess(config, console)
    store = ObjectStore(config.shards_folder)
    tar = next(name for name in store.sizes() if name.endswith(".tar"))
    store.write(tar, b"short")
    with pytest.raises(UserError, match=r"\.tar: has 5 bytes instead of \d+.*--fresh"):
        preprocess(config, console)
    store.remove([tar])
    with pytest.raises(UserError, match=r"\.tar: missing"):
        preprocess(config, console)
    preprocess(config, console, fresh=True)
    assert verify(config.shards_folder) == []


def test_values_of_a_table_reach_the_workers(home: str, console: Console, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "a,b,label\n" + "".join(f"{n},{n % 7},{'xy'[n % 2]}\n" for n in range(60))
    )
    digests = [
        preprocess(
            load_config(
                "table",
                [f"data.train={tmp_path / 'rows.csv'}", "data.target={kind: class, column: label}",
                 "data.table={numeric: [a, b], categorical: []}",
                 f"output={tmp_path / 'out'}", f"shards={shards}"],
            ),
            console,
        )["digest"]
        for shards in (f"{home}/table", tmp_path / "table")
    ]  # fmt: skip
    assert digests[0] == digests[1]


def test_a_run_whose_output_is_object_storage_has_its_set_there_and_trains_from_it(
    make_config: MakeConfig, home: str, console: Console, tmp_path: Path
) -> None:
    config = make_config(
        f"{home}/runs", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}", "cluster.num_workers=0",
        "training.epochs=1", "training.ema_decay=null",
    )  # fmt: skip
    made = preprocess(config, console)
    assert made["shards"] == f"{home}/runs/digits/shards"
    assert train(config, console)["epochs"] == 1


def test_an_address_that_cannot_be_written_or_holds_a_secret_is_refused(
    make_config: MakeConfig, console: Console, tmp_path: Path
) -> None:
    for address, reason in (
        ("https://example.org/set", "cannot be written"),
        ("s3://key:secret@bucket/set", "holds a secret"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            preprocess(make_config(tmp_path, f"shards={address}"), console)
        assert "secret@" not in str(caught.value)
