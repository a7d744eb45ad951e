"""`perceiver bench train`: the same steps through our loop, in plain torch, and in Lightning."""

from pathlib import Path

import pytest
import torch
from whole_state import gather_state

from benchmarks import train as bench
from benchmarks.train import Options, bench_train, interval_of_median, report, rows_of
from benchmarks.train_loops import BareLoop, OursLoop
from pipeline.config.load import with_values
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.training.launch import fit_workers
from pipeline.training.worker import TrainTask, open_training

SMALL = Options(model="digits", batch_size=8, steps=2, rounds=2, workers=0, stage="2", device="cpu")


def test_all_contestants_take_the_steps_and_ours_is_put_beside_bare_torch(console: Console) -> None:
    result = bench_train(SMALL, console)
    rows = {row["label"]: row for row in result["rows"]}
    assert list(rows) == ["ours", "bare torch", "Lightning"]
    assert rows["bare torch"]["vs_bare"] == 1
    for row in rows.values():
        assert len(row["seconds"]) == SMALL.rounds and row["ms_per_step"] > 0
        assert row["interval"][0] <= row["vs_bare"] <= row["interval"][1]
    assert result["parameters"] > 50_000
    report(result, console)


def test_the_ratio_is_that_of_the_rounds_and_not_of_the_medians() -> None:
    rows = rows_of({"ours": [2.0, 6.0, 3.0], "bare torch": [1.0, 2.0, 3.0]}, steps=1)
    assert rows[0]["vs_bare"] == 2.0 and rows[0]["ms_per_step"] == 3000
    assert rows[0]["interval"] == (1.0, 3.0)


@pytest.mark.parametrize(("count", "left_out"), [(3, 0), (6, 0), (9, 1), (15, 3), (25, 7)])
def test_the_interval_is_that_of_the_sign_test(count: int, left_out: int) -> None:
    found = interval_of_median([float(n) for n in range(count)][::-1])
    assert found == (left_out, count - 1 - left_out)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"model": "huge"}, "--model huge: is none of"), ({"stage": "4"}, "--stage 4: must be"),
     ({"rounds": 0}, "must be at least 1"), ({"device": "tpu"}, "--device tpu: must be"),
     ({"precision": "fp4"}, "--precision fp4: must be"), ({"workers": -1}, "--workers")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(wrong: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Options(**wrong)


def test_the_bare_loop_takes_the_same_steps_as_ours(tmp_path: Path) -> None:
    config = with_values(
        bench.config_of(SMALL, "cpu", "float32", tmp_path),
        {"training.eps": 1e-3},  # Adam makes rounding large where a gradient is 0
    )
    bench.write_pictures(config, SMALL.steps * SMALL.batch_size)
    folder = tmp_path / "train"
    folder.mkdir()
    found: dict[str, dict[str, torch.Tensor]] = {}

    def both(task: TrainTask) -> None:
        with open_training(task) as (loop, _):
            ours, bare = OursLoop(loop), BareLoop(loop)
            first = {name: weight.clone() for name, weight in bare.model.named_parameters()}
            ours.epoch(0)
            bare.epoch(0)
            found["first"], found["bare"] = first, dict(bare.model.named_parameters())
            found["ours"], _ = gather_state(loop.engine)

    fit_workers(
        config.cluster, both, TrainTask(config.model_dump_json(), str(folder), None), folder
    )
    assert any(not torch.equal(found["ours"][name], w) for name, w in found["first"].items())
    for name, weight in found["bare"].items():
        torch.testing.assert_close(found["ours"][name], weight.detach(), rtol=1e-4, atol=1e-5)
