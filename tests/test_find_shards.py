"""A shard set belongs to its data: a configuration of another name finds it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.find_shards import with_shards
from pipeline.preprocess.ledger import ledger_path
from pipeline.runs.console import Console

MakeConfig = Callable[..., Config]
SETTINGS = ("data.samples_per_shard=100", "name=digits-long")


@pytest.fixture
def output(digit_shards: Path, tmp_path: Path) -> Path:
    """An output folder with one run's shard set."""
    return copy_set(digit_shards, tmp_path / "runs", "digits")


def copy_set(digit_shards: Path, output: Path, name: str) -> Path:
    shutil.copytree(digit_shards, output / name / "shards")
    ledger = ledger_path(digit_shards)
    shutil.copy(ledger, output / name / ledger.name)
    return output


def found(config: Config, console: Console) -> str:
    return with_shards(config, console).shards_folder


def test_another_name_finds_the_set(
    make_config: MakeConfig, output: Path, console: Console
) -> None:
    expected = str(output / "digits" / "shards")
    assert found(make_config(output, *SETTINGS), console) == expected
    # The training's own settings, and its seed, say nothing of the data.
    for other in ("training.learning_rate=1e-4", "seed=7", "model.encoder.num_latents=4"):
        assert found(make_config(output, *SETTINGS, other), console) == expected


def test_a_set_of_the_run_s_own_comes_first_and_so_does_a_place_that_is_named(
    make_config: MakeConfig, digit_shards: Path, output: Path, console: Console
) -> None:
    copy_set(digit_shards, output, "digits-long")
    own = make_config(output, *SETTINGS)
    assert with_shards(own, console) == own
    named = make_config(output, *SETTINGS, "name=third", f"shards={digit_shards}")
    assert with_shards(named, console) == named


def test_equal_sets_are_one(
    make_config: MakeConfig, digit_shards: Path, output: Path, console: Console
) -> None:
    copy_set(digit_shards, output, "another")
    assert found(make_config(output, *SETTINGS), console).endswith("/another/shards")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image.height=14", r"other settings: data\.image\.height was 28, is 14"),
        ("data.validation=0.5", r"other settings: data\.validation was 0\.15, is 0\.5"),
        ("model.positions.num_bands=4", r"without this model's Fourier features: .*shards=.* adds"),
        ("data.train=/elsewhere", r"none of this data in .*run 'perceiver preprocess'"),
    ],
)
def test_other_data_is_not_taken_for_the_same(
    make_config: MakeConfig, output: Path, console: Console, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        with_shards(make_config(output, *SETTINGS, override), console)


def test_a_set_whose_sources_are_not_known_is_not_taken(
    make_config: MakeConfig, output: Path, console: Console
) -> None:
    ledger = ledger_path(output / "digits" / "shards")
    for damage in (lambda: ledger.write_bytes(b"no table"), ledger.unlink):
        damage()
        with pytest.raises(UserError, match="none of this data"):
            with_shards(make_config(output, *SETTINGS), console)


@pytest.mark.usefixtures("ray_cluster")
def test_several_sets_that_differ_are_named(
    make_config: MakeConfig, copied_digits: Path, tmp_path: Path, console: Console
) -> None:
    from pipeline.preprocess.preprocess import preprocess

    output = tmp_path / "runs"

    def config(name: str) -> Config:
        return make_config(output, f"data.train={copied_digits / 'train'}", f"name={name}")

    preprocess(config("before"), console)
    next((copied_digits / "train" / "7").iterdir()).unlink()
    preprocess(config("after"), console)
    with pytest.raises(UserError, match=r"differ: .*/after/shards, .*/before/shards; .*shards="):
        with_shards(config("third"), console)
