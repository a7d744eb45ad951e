"""Other Fourier features are added to a finished set, and no shard is touched."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from shard_sets import flip_bit
from test_incremental import config as config

from pipeline.config.load import with_values
from pipeline.config.overrides import read_override
from pipeline.config.tree import Config
from pipeline.preprocess.identity import needed_positions
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from pipeline.training.open_shards import open_shards
from pipeline.tuning import tune as tune_module
from shards import ShardError, ShardSet, verify

pytestmark = pytest.mark.usefixtures("ray_cluster")
MakeConfig = Callable[..., Config]


def test_other_fourier_features_are_added_and_no_shard_is_touched(
    config: Config, make_config: MakeConfig, console: Console, tmp_path: Path
) -> None:
    first = preprocess(config, console)
    shards = Path(first["shards"])
    before = {path: path.stat() for path in shards.rglob("*") if path.is_file()}
    more = make_config(
        tmp_path / "out", f"data.train={config.data.train}", "data.samples_per_shard=100",
        "model.positions.num_bands=4",
    )  # fmt: skip
    with pytest.raises(ShardError, match=r"num_bands=4.*num_bands=8.*run 'perceiver preprocess'"):
        open_shards(more)
    second = preprocess(more, console)
    assert (second["skipped"], second["added_positions"]) == (True, 1)
    assert (second["digest"], second["decoded"]) == (first["digest"], 0)
    assert {path: path.stat() for path in before if path.parent.name != "shards.lock"} == before
    for each in (config, more):
        open_shards(each)
        assert preprocess(each, console)["added_positions"] == 0
    assert verify(shards) == []
    # New sources make a new set; it has the tables of the old one, and gets those that are added.
    Image.new("L", (28, 28), 5).save(Path(config.data.train) / "0" / "new.png")
    third = preprocess(more, console)
    assert (third["decoded"], third["added_positions"]) == (1, 1)
    assert preprocess(config, console)["added_positions"] == 0
    table = next((shards / "positions").glob(f"{needed_positions(more)[0].digest}*"))
    flip_bit(table, 200)
    assert [problem.file for problem in verify(shards)] == [f"positions/{table.name}"]
    with pytest.raises(ShardError, match="sha256 differs"):
        open_shards(more)
    (shards / "positions.json").write_text("[1]")
    with pytest.raises(ShardError, match=r"positions\.json: damaged .*remove it, and run"):
        open_shards(more)


def test_a_study_adds_the_tables_of_its_trials(
    config: Config, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = preprocess(config, console)
    searched = "{search: grid, space: {model.positions.num_bands: {choice: [8, 2, 3]}, "
    study = with_values(
        config, {"study": read_override(f"study={searched}training.eps: {{choice: [1e-8]}}}}}}")[1]}
    )

    class TrialsBeginError(Exception):
        pass

    def no_trials(*args: object) -> None:
        raise TrialsBeginError

    monkeypatch.setattr(tune_module, "_study", no_trials)
    with pytest.raises(TrialsBeginError):
        tune_module.tune(study, console)
    shard_set = ShardSet.open(done["shards"])
    for bands in (8, 2, 3):
        (spec,) = needed_positions(with_values(config, {"model.positions.num_bands": bands}))
        assert shard_set.holds(spec)
    assert shard_set.manifest.digest == done["digest"]
