"""The limits of a trial and the budget of a study, with the real queue, samplers and schedulers."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import LATENTS, KilledError, Simulation, begins, config_of, decisions_of, sizes

from pipeline.config.budget import LimitsConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.records import RunRecord
from pipeline.tuning import trial_costs
from pipeline.tuning.growth import has_more_trials, study_fields
from pipeline.tuning.journal import Refusal
from pipeline.tuning.spending import Spending
from pipeline.tuning.study import Study
from pipeline.tuning.trial_costs import beyond, measured_latency, planned_memory
from shards import ShardSet

MakeConfig = Callable[..., Config]
EPOCHS, SAMPLES = 4, 100
SPACE = "space: {model.encoder.num_latents: {choice: [16, 32, 64, 128]}}"


def section(budget: str, more: str = "scheduler: none, num_trials: 20") -> str:
    return f"{{{SPACE}, {more}, budget: {budget}}}"


def flops_of(latents: int, epochs: int = EPOCHS) -> float:
    return 3 * sizes({LATENTS: latents})["flops"] * epochs * SAMPLES


def refusals(study: Study) -> list[Refusal]:
    return [entry for entry in study.journal.entries if isinstance(entry, Refusal)]


@pytest.mark.parametrize("search", ["random", "sobol", "tpe"])
@pytest.mark.parametrize("concurrent", [1, 3])
def test_a_study_never_spends_more_flops_than_its_budget(
    tmp_path: Path, search: str, concurrent: int
) -> None:
    budget = flops_of(128) * 3.5
    config = config_of(section(f"{{flops: {budget}}}", f"search: {search}, scheduler: none, "
                               "num_trials: 40"))  # fmt: skip
    study = Simulation(config, tmp_path, concurrent=concurrent).run()
    spent = Spending(study).flops()
    assert spent == sum(flops_of(each.settings[LATENTS]) for each in begins(study))
    assert budget - flops_of(16) < spent <= budget
    assert all(study.has_ended(number) for number in study.records)


def test_what_does_not_fit_is_replaced_by_what_does(tmp_path: Path) -> None:
    study = Simulation(
        config_of(section(f"{{flops: {flops_of(32) * 2.5}}}")), tmp_path, concurrent=1
    ).run()
    refused = [entry.settings[LATENTS] for entry in refusals(study)]
    assert 128 in refused
    assert all("of study.budget.flops=" in entry.refused for entry in refusals(study))
    assert begins(study)
    assert {each.settings[LATENTS] for each in begins(study)} <= {16, 32, 64}


def test_what_stopped_trials_leave_over_goes_to_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    budget = f"{{flops: {flops_of(64) * 4}}}"
    whole = Simulation(config_of(section(budget)), tmp_path / "a", concurrent=4).run()
    halved = Simulation(
        config_of(section(budget, "num_trials: 60")), tmp_path / "b", concurrent=4
    ).run()
    assert len(begins(halved)) > len(begins(whole))
    assert Spending(halved).flops() <= flops_of(64) * 4


def test_when_the_device_hours_are_spent_trials_stop_and_none_begins(tmp_path: Path) -> None:
    config = config_of(section("{device_hours: 0.01}", "scheduler: none, num_trials: 50, "
                               "num_workers: 2"))  # fmt: skip
    simulation = Simulation(config, tmp_path, concurrent=2, seconds=3.0)
    study = simulation.run()
    spending = Spending(study)
    # Six seconds of two workers each epoch, and one epoch of the other trial after the end.
    assert 0.01 <= spending.device_hours() <= 0.01 + 2 * 6 / 3600
    assert all(study.has_ended(number) for number in study.records)
    assert any(record.is_stopped for record in study.records.values())
    assert spending.told() == {
        "device_hours": {"spent": spending.device_hours(), "budget": 0.01}
    }  # fmt: skip


def test_a_killed_study_spends_the_same_budget(tmp_path: Path) -> None:
    config = config_of(section(f"{{flops: {flops_of(64) * 5}}}", "search: tpe, num_trials: 60"))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = Simulation(config, tmp_path / "whole").run()
    total = len(undisturbed.journal.reports)
    for kill_at in range(1, total, 5):
        with pytest.raises(KilledError):
            Simulation(config, tmp_path / "killed").run(kill_at)
    resumed = Simulation(config, tmp_path / "killed").run()
    assert decisions_of(resumed) == decisions_of(undisturbed)
    assert Spending(resumed).flops() == Spending(undisturbed).flops() <= flops_of(64) * 5


def test_a_study_that_ended_at_its_budget_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    ended = Simulation(config_of(section(f"{{flops: {flops_of(16) * 3}}}")), tmp_path).run()
    assert len(begins(ended)) <= 3
    larger = f"{{flops: {flops_of(16) * 6}}}"
    more = Simulation(config_of(section(larger)), tmp_path).run()
    assert begins(more)[: len(begins(ended))] == begins(ended)
    assert Spending(ended).flops() < Spending(more).flops() <= flops_of(16) * 6


def test_further_seeds_and_confirmations_need_room_too(tmp_path: Path) -> None:
    config = config_of(
        section(f"{{flops: {flops_of(16) * 3.2}}}",
                "scheduler: none, num_trials: 2, seeds: 3, confirm: 4")
    )  # fmt: skip
    study = Simulation(config, tmp_path, concurrent=1).run()
    assert Spending(study).flops() <= flops_of(16) * 3.2


def growth(then: str, now: str, folder: Path) -> bool:
    before, after = config_of(section(then)).study, config_of(section(now)).study
    assert before is not None and after is not None
    (folder / "reports.jsonl").write_text("")
    record = RunRecord("tune", study_fields(before), {}, 0.0, done=True)
    return has_more_trials(record, study_fields(after), after, folder, {})


def test_a_larger_budget_continues_a_finished_study_and_a_smaller_one_is_refused(
    tmp_path: Path,
) -> None:
    assert growth("{flops: 1e9}", "{flops: 2e9}", tmp_path)
    assert growth("{flops: 1e9}", "{}", tmp_path)
    assert not growth("{flops: 1e9, device_hours: 1}", "{flops: 1e9, device_hours: 1}", tmp_path)
    with pytest.raises(UserError, match=r"study\.budget\.flops=2000000000\.0, and .* is 1"):
        growth("{flops: 2e9}", "{flops: 1e9}", tmp_path)


@pytest.mark.parametrize(
    ("limits", "names"),
    [(LimitsConfig(flops=10), "study.limits.flops is 10"),
     (LimitsConfig(parameters=10), "study.limits.parameters is 10"),
     (LimitsConfig(memory_gib=0.001), "study.limits.memory_gib is 0.001"),
     (LimitsConfig(latency_ms=1e-6), "study.limits.latency_ms is 1e-06")],
)  # fmt: skip
def test_a_trial_beyond_a_limit_is_refused_with_its_own_number(
    digit_shards: Path, make_config: MakeConfig, tmp_path: Path, limits: LimitsConfig, names: str
) -> None:
    config = make_config(tmp_path, f"shards={digit_shards}")
    shard_set = ShardSet.open(digit_shards)
    counted = {"flops": 1e6, "parameters": 1e3}
    told = beyond(limits, counted, config, shard_set)
    assert told is not None
    assert names in told
    assert beyond(LimitsConfig(), counted, config, shard_set) is None


def test_memory_is_that_of_the_trial(
    digit_shards: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    shard_set = ShardSet.open(digit_shards)
    small, large = (
        make_config(tmp_path, f"shards={digit_shards}", f"training.batch_size={size}")
        for size in (8, 64)
    )
    assert planned_memory(small, shard_set) < planned_memory(large, shard_set)


def test_latency_is_the_median_time_of_a_pass(
    digit_shards: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = iter([9.0, 9.0, *[0.002] * 5, *[0.5] * 4])  # two to warm up, then nine
    clock = itertools.chain.from_iterable((0.0, each) for each in durations)
    monkeypatch.setattr(trial_costs.time, "perf_counter", lambda: next(clock))
    config = make_config(tmp_path, f"shards={digit_shards}")
    assert measured_latency(config, ShardSet.open(digit_shards)) == 2
