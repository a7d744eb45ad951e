"""Samplers: the same seed and the same arrival of reports draw the same settings, killed or not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from studies import (
    DECAY,
    LATENTS,
    RATE,
    KilledError,
    Simulation,
    begins,
    config_of,
    decisions_of,
    sizes,
)

from pipeline.config.conditions import existing
from pipeline.config.load import load_config
from pipeline.config.optuna_search import POPULATION
from pipeline.config.sampler import Outcome
from pipeline.config.search import SEARCHES
from pipeline.config.study import StudyConfig
from pipeline.errors import UserError
from pipeline.tuning.front import front
from pipeline.tuning.journal import Refusal
from pipeline.tuning.journal_lines import JOURNAL_FILE

SPACE = (
    f"{{{RATE}: {{loguniform: [1e-5, 1e-1]}}, {DECAY}: {{uniform: [0.0, 0.2]}}, "
    f"{LATENTS}: {{integer: [8, 64, 8]}}}}"
)
SEQUENTIAL = ("tpe", "cmaes", "nsga2")
EVERY = ("random", "sobol", *SEQUENTIAL)


def study(search: str, trials: int = 20, more: str = "") -> str:
    return f"{{search: {search}, num_trials: {trials}, space: {SPACE}{more}}}"


def settings_of(simulation: Simulation) -> list[dict[str, Any]]:
    return [begin.settings for begin in begins(simulation.run())]


@pytest.mark.parametrize("search", EVERY)
def test_the_same_seed_and_order_draw_the_same_settings(search: str, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        config = config_of(study(search), f"seed={seed}")
        drawn.append(settings_of(Simulation(config, tmp_path / name)))
    assert len(drawn[0]) == 20
    assert drawn[0] == drawn[1] != drawn[2]
    for settings in drawn[0]:
        assert 1e-5 <= settings[RATE] <= 1e-1 and 0 <= settings[DECAY] <= 0.2
        assert settings[LATENTS] in range(8, 65, 8) and type(settings[LATENTS]) is int


@pytest.mark.parametrize("search", SEQUENTIAL)
def test_a_study_killed_after_any_report_draws_what_it_would_have(
    search: str, tmp_path: Path
) -> None:
    config = config_of(study(search))
    (tmp_path / "whole").mkdir()
    whole = Simulation(config, tmp_path / "whole", concurrent=3).run()
    (tmp_path / "killed").mkdir()
    killed = Simulation(config, tmp_path / "killed", concurrent=3)
    for kill_at in range(1, len(whole.journal.reports), 7):
        with pytest.raises(KilledError):
            killed.run(kill_at)
    assert decisions_of(killed.run()) == decisions_of(whole)


@pytest.mark.parametrize("search", SEQUENTIAL)
def test_the_order_of_arrival_counts_for_those_that_learn(search: str, tmp_path: Path) -> None:
    config = config_of(study(search, trials=30, more=", scheduler: none"))
    drawn = []
    for order in range(3):
        (tmp_path / str(order)).mkdir()
        simulation = Simulation(config, tmp_path / str(order), order=order, concurrent=6)
        drawn.append(settings_of(simulation))
    assert drawn[0] != drawn[1] or drawn[0] != drawn[2]


def test_tpe_and_cmaes_find_better_settings_than_chance(tmp_path: Path) -> None:
    best = {}
    for search in ("random", "tpe", "cmaes"):
        folder = tmp_path / search
        folder.mkdir()
        config = config_of(study(search, trials=40, more=", scheduler: none"))
        found = Simulation(config, folder).run()
        scores = [record.best_score or 0.0 for record in found.records.values()]
        best[search] = sum(sorted(scores)[-10:])
    assert best["tpe"] > best["random"] and best["cmaes"] > best["random"]


def test_settings_do_not_depend_on_the_order_in_which_python_hashes_names(tmp_path: Path) -> None:
    code = (
        "import sys, json; sys.path.insert(0, 'tests'); from pathlib import Path;"
        "from test_samplers import *;"
        "print(json.dumps(settings_of(Simulation(config_of(study('tpe')), Path(sys.argv[1])))))"
    )
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "other")]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    other = json.loads(subprocess.check_output(command, env=environment, text=True))
    (tmp_path / "own").mkdir()
    assert settings_of(Simulation(config_of(study("tpe")), tmp_path / "own")) == other


CONDITIONAL = (
    "{search: SEARCH, num_trials: 30, scheduler: none, space: {training.optimizer: "
    "{choice: [adamw, muon]}, training.momentum: {uniform: [0.5, 0.99], when: "
    f"{{training.optimizer: [muon]}}}}, {RATE}: {{loguniform: [1e-5, 1e-1]}}, {LATENTS}: "
    "{log_integer: [8, 64]}}}"
)


@pytest.mark.parametrize("search", SEQUENTIAL)
def test_fields_with_conditions_exist_where_these_hold(search: str, tmp_path: Path) -> None:
    config = config_of(CONDITIONAL.replace("SEARCH", search), "training.zero_stage=0")
    drawn = settings_of(Simulation(config, tmp_path))
    assert config.study is not None
    for settings in drawn:
        assert existing(config.study.space, settings) == settings
        assert ("training.momentum" in settings) == (settings["training.optimizer"] == "muon")
    assert {settings["training.optimizer"] for settings in drawn} == {"adamw", "muon"}


@pytest.mark.parametrize("search", EVERY)
def test_more_trials_go_on_from_a_finished_study(search: str, tmp_path: Path) -> None:
    (tmp_path / "grown").mkdir()
    (tmp_path / "whole").mkdir()
    Simulation(config_of(study(search, trials=9)), tmp_path / "grown", concurrent=1).run()
    grown = Simulation(config_of(study(search, trials=16)), tmp_path / "grown", concurrent=1).run()
    whole = Simulation(config_of(study(search, trials=16)), tmp_path / "whole", concurrent=1).run()
    assert begins(grown) == begins(whole)
    assert len(begins(grown)) == 16


def test_several_objectives_are_told_and_the_front_is_theirs(tmp_path: Path) -> None:
    def larger_is_better(settings: dict[str, Any], seed: int, epoch: int) -> float:
        return float(settings[LATENTS] >= 32) * settings[LATENTS] / 100 + epoch / 10

    section = study("nsga2", 4 * POPULATION, ", scheduler: none, objectives: [flops]")
    found = Simulation(config_of(section), tmp_path, larger_is_better).run()
    # Those below 32 are no better than those with 8.
    points = [(record.best_score or 0.0, -sizes(record.settings)["flops"])
              for record in found.records.values()]  # fmt: skip
    on_front = {found.records[number].settings[LATENTS] for number in front(points)}
    assert on_front <= {8, 32, 40, 48, 56, 64} and {8, 64} <= on_front


def test_the_front_holds_what_nothing_else_beats() -> None:
    assert front([(0.9, -10), (0.8, -5), (0.8, -7), (0.9, -10), (0.5, -1), (0.4, -2)]) == [
        0, 1, 3, 4,
    ]  # fmt: skip
    assert front([]) == []


def test_settings_that_are_refused_are_replaced(tmp_path: Path) -> None:
    def refuses(settings: dict[str, Any]) -> str | None:
        return "too large" if settings[LATENTS] > 32 else None

    for search in ("random", "tpe"):
        folder = tmp_path / search
        folder.mkdir()
        simulation = Simulation(config_of(study(search, trials=12)), folder, refuses=refuses)
        with pytest.raises(KilledError):
            simulation.run(9)
        found = simulation.run()
        assert [begin.trial for begin in begins(found)] == list(range(12))
        assert all(begin.settings[LATENTS] <= 32 for begin in begins(found))
        refused = [entry for entry in found.journal.entries if isinstance(entry, Refusal)]
        assert refused and all(entry.refused == "too large" for entry in refused)
        draws = [begin.draw for begin in begins(found)] + [entry.draw for entry in refused]
        assert sorted(draws) == list(range(len(draws)))


def test_a_space_in_which_all_is_refused_ends(tmp_path: Path) -> None:
    section = f"{{search: grid, space: {{{LATENTS}: {{integer: [8, 64, 8]}}}}}}"
    found = Simulation(config_of(section), tmp_path, refuses=lambda settings: "no").run()
    assert not found.records
    assert sum(isinstance(entry, Refusal) for entry in found.journal.entries) == 8


def test_settings_that_failed_and_were_tried_again_count(tmp_path: Path) -> None:
    space = StudyConfig.model_validate({"space": {"a": {"uniform": (0.0, 1.0)}}}).space
    sampler, other = (SEARCHES["tpe"].sampler(space, 0) for _ in range(2))
    for each in (sampler, other):
        for draw in range(12):
            each.ask()
            each.tell(draw, Outcome(None if draw == 5 else (float(draw % 3),)))
    sampler.tell(5, Outcome((9.0,)))
    assert sampler.ask() != other.ask()


def test_another_version_s_draws_are_refused_with_a_line(tmp_path: Path) -> None:
    simulation = Simulation(config_of(study("tpe")), tmp_path)
    with pytest.raises(KilledError):
        simulation.run(20)
    path = tmp_path / JOURNAL_FILE
    lines = path.read_text().splitlines(keepends=True)
    changed = json.loads(lines[0])
    changed["settings"][DECAY] = 0.125
    path.write_text(json.dumps(changed) + "\n" + "".join(lines[1:]))
    with pytest.raises(UserError, match=r"search 'tpe' draws other settings .* optuna .*--fresh"):
        simulation.run()


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("{search: gird, space: SPACE}", "search: is 'gird'; must be 'grid', 'random', 'sobol'"),
        ("{scheduler: ash, space: SPACE}", "scheduler: is 'ash'; must be 'asha', 'hyperband'"),
        (f"{{search: cmaes, space: {{{RATE}: {{uniform: [1e-4, 1e-3]}}}}}}", "two numbers or more"),
        ("{search: cmaes, objectives: [flops], space: SPACE}", "search 'cmaes' has one objective"),
        ("{search: nsga2, objectives: [flops], space: SPACE}", "set scheduler to 'none'"),
        ("{search: nsga2, objectives: [time], space: SPACE}", "objectives.0: is 'time'"),
        ("{objectives: [flops, flops], scheduler: none, space: SPACE}", "name each one once"),
        ("{seeds: 2, space: {seed: {choice: [1, 2]}}}", "seeds and confirm choose the seeds"),
        ("{search: grid, num_trials: 5, space: {seed: {choice: [1, 2]}}}", "num_trials is 5, but"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_line(section: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config("digits", [f"study={section.replace('SPACE', SPACE)}"])
    (line,) = str(refused.value).splitlines()
    assert line.startswith("digits: study") and told in line
