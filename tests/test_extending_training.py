"""One more of each kind, added as docs/extending.md says: its blocks run, what they add works."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from gate_runs import NAME, some_rows, table_config, track

from cluster.errors import ClusterError
from cluster.optimizers import OPTIMIZERS
from pipeline.config.load import with_values
from pipeline.config.search import SEARCHES
from pipeline.config.tree import Config
from pipeline.errors import GateRefusedError
from pipeline.media import FittedTableFormat, encode_members, fit_vocabulary
from pipeline.media.table.modality import VOCABULARY
from pipeline.registry.predict import encode_predictions, predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.checkpoints import best_checkpoint
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.train import train
from pipeline.tuning.schedulers import SCHEDULERS
from shards import Sample, publish, write_shard
from shards.npy import encode_npy

PAGE = Path(__file__).parent.parent / "docs/extending.md"
SECTIONS = {
    title: text
    for title, text in re.findall(
        r"^## (Add [^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S
    )
    if title != "Add a modality"  # test_extending.py adds one to a copy of the project
}
Tables: list[dict[str, Any]] = [OBJECTIVES, OPTIMIZERS, SEARCHES, SCHEDULERS]


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    kept = [dict(table) for table in Tables]
    yield
    for table, before in zip(Tables, kept, strict=True):
        table.clear()
        table.update(before)


def run_section(title: str) -> dict[str, Any]:
    """Run the blocks of a section one after the other; returns their names."""
    names: dict[str, Any] = {"__name__": "extending"}
    blocks = re.findall(r"```python\n(.*?)```", SECTIONS[title], re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, f"docs/extending.md, {title}", "exec"), names)
    return names


@pytest.mark.parametrize("title", SECTIONS)
def test_the_blocks_of_every_section_run(title: str) -> None:
    run_section(title)


def test_an_added_objective_gives_loss_and_metrics_of_a_batch() -> None:
    names = run_section("Add an objective")
    outputs, targets = names["outputs"][:3], names["batch"].targets[:3]
    assert names["metrics"] == {
        "val_loss": pytest.approx(float(((outputs - targets) ** 2).mean())),
        "val_mae": pytest.approx(float((outputs - targets).abs().mean())),
    }
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert OBJECTIVES["regress"].score({"train_mae": 1.0, "val_mae": 2.0}) == -2.0


def write_heights(config: Config) -> None:
    """A shard set of rows whose target is a number: their column x, plus 10 of one kind."""
    assert config.data.table is not None
    rows = some_rows(0, 300, odd=False)
    train = pa.RecordBatch.from_pylist(rows[:200])
    fmt = FittedTableFormat.of(config.data.table, fit_vocabulary([train], config.data.table))
    staging = Path(config.shards_folder).with_name("staging")
    for shard, (split, own) in enumerate((("train", rows[:200]), ("validation", rows[200:]))):
        samples = []
        for number, row in enumerate(own):
            height = (row["x"] - 64) / 5 + 10 * (row["kind"] == "r")
            members = encode_members(fmt.encode_row(row), fmt)
            members["target.npy"] = encode_npy(np.array([height], np.float32))
            digest = hashlib.sha256(f"{split}{number}".encode()).hexdigest()
            samples.append(Sample(f"{number:05d}", members, None, f"{split}/{number}", digest))
        write_shard(staging, shard, split, samples)
    publish(
        staging, Path(config.shards_folder), numbers=range(2), input_digest="0" * 64, classes=(),
        config={VOCABULARY: fmt.vocabulary.to_dict(),
                "data.table": config.tree()["data"]["table"]},
        positions=[],
    )  # fmt: skip


def test_an_added_objective_is_trained_registered_and_asked(
    tmp_path: Path, console: Console
) -> None:
    """Its metric falls, selects the checkpoint and the champion, and its answers are numbers."""
    run_section("Add an objective")
    base = table_config(tmp_path / "runs", "heights")
    target = {"kind": "regression", "column": "height"}
    config = with_values(
        base,
        {"data.target": target, "training.epochs": 6, "training.batch_size": 20,
         "training.learning_rate": 0.02, "training.schedule.warmup_epochs": 0},
    )  # fmt: skip
    write_heights(config)
    trained = train(config, console)
    metrics = trained["metrics"]
    assert metrics["val_mae"] == trained["score"] < 2.5, "the median's is about 5"
    best = best_checkpoint(config.folder / "train" / "checkpoints")
    assert best is not None and best.state.score == -metrics["val_mae"]

    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    first = promote(mlflow_client, trained["run_id"], console)
    assert first["mae"] == pytest.approx(metrics["val_mae"], rel=1e-4)
    assert (first["objective"], first["champion_mae"]) == ("regress", None)
    worse = train(
        with_values(
            config, {"name": "worse", "training.epochs": 1, "shards": config.shards_folder}
        ),
        console,
    )
    with pytest.raises(GateRefusedError, match=r"has mae \d+\.\d+ on 100 samples, where the cham"):
        promote(mlflow_client, worse["run_id"], console)

    asked = tmp_path / "rows.jsonl"
    asked.write_text('{"x": 64, "kind": "r"}\n{"x": 64, "kind": "s"}\n')
    found = predict(mlflow_client, f"models:/{NAME}@champion", [str(asked)], console)
    (high,), (low,) = (answer["values"] for answer in found["predictions"])
    assert high - low > 5
    table = encode_predictions([OBJECTIVES["regress"].prediction.unusable("a", "b")], ".parquet",
                               OBJECTIVES["regress"].prediction)  # fmt: skip
    assert table.startswith(b"PAR1")


def test_an_added_optimizer_s_state_is_gathered_and_restored_at_every_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cluster.deepspeed_engine import Strategy, initialize_engine, leave_process_group
    from cluster.engine_state import gather_state, restore_state
    from pipeline.config.training import TrainingConfig
    from pipeline.training.worker import make_optimizer

    run_section("Add an optimizer")
    monkeypatch.setenv("LOCAL_RANK", "0")
    training = TrainingConfig(learning_rate=0.1)

    def steps(stage: int, first: int, last: int, state: Any = None) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
        if state:
            model.load_state_dict(state[0])
        strategy = Strategy(
            world_size=1, zero_stage=stage, micro_batch_size=4, gradient_accumulation_steps=1,
            gradient_clipping=0.0, precision="float32", device="cpu", optimizer="SGD",
        )  # fmt: skip
        engine = initialize_engine(model, make_optimizer(model, training, "SGD"), strategy)
        if state:
            restore_state(engine, *state, step=first)
        for step in range(first, last):
            inputs = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
            engine.backward(engine(inputs).square().mean())
            engine.step()
        return gather_state(engine)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        whole = steps(0, 0, 4)
        half = steps(1, 0, 2)
        assert set(half[1]) == {f"momentum_buffer.{name}" for name in half[0]}
        for stage in (0, 2, 3):
            for found, expected in zip(steps(stage, 2, 4, half), whole, strict=True):
                torch.testing.assert_close(found, expected)
        adam = {f"exp_avg.{name}": tensor for name, tensor in half[0].items()}
        with pytest.raises(ClusterError, match=r"state is not that of SGD .*exp_avg"):
            steps(2, 2, 2, (half[0], adam))
        OPTIMIZERS["SGD"] = replace(OPTIMIZERS["SGD"], is_elementwise=False)
        with pytest.raises(ClusterError, match="zero_stage is 2, whose slices SGD cannot step"):
            steps(2, 0, 1)
    finally:
        leave_process_group()


def test_an_added_search_and_scheduler_are_a_study_s() -> None:
    names = run_section("Add a search algorithm")
    rates = [settings["training.learning_rate"] for settings in names["settings"]]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    more = names["study"].model_copy(update={"num_trials": 5})
    assert names["draw_settings"](more, seed=0)[:3] == names["settings"]
    scheduler = SCHEDULERS["below_median"](names["study"], 4)
    assert [scheduler.stops(n, 1, score) for n, score in enumerate((0.5, 0.4, 0.6))] == [
        False, True, False,
    ]  # fmt: skip
