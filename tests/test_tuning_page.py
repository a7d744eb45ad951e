"""The page of a study, seen in a real browser."""

import math
from pathlib import Path
from typing import Any

import pytest
from browser import browser

from pipeline.tuning.figures import importances
from pipeline.tuning.page import study_page

HOSTILE = "</script><img src=x onerror=document.title='taken'>"


def trials_of(count: int) -> list[dict[str, Any]]:
    """Trials whose accuracy depends on the latents, and hardly on the learning rate."""
    trials = []
    for number in range(count):
        latents, rate = (16, 32, 64)[number % 3], 10 ** (-4 + 2 * (number * 0.37 % 1))
        accuracy = 0.5 + 0.1 * math.log2(latents / 16) + 0.001 * math.log10(rate)
        trials.append(
            {
                "id": f"{number:05d}",
                "params": {
                    "model.encoder.num_latents": latents,
                    "training.learning_rate": rate,
                    "model.adapter.kind": ("pixels", HOSTILE)[number % 2],
                },
                "accuracy": accuracy,
                "val_loss": 2 * latents**-0.25,
                "forward_flops": latents * 10**6,
                "parameters": 1000 + latents,
                "epochs": 3,
                "stopped_early": number % 4 == 0,
                "notes": [HOSTILE] if number == 3 else [],
            }
        )
    return sorted(trials, key=lambda trial: -trial["accuracy"])


def page_of(trials: list[dict[str, Any]]) -> str:
    settings = [
        {**trial, "draw": draw, "interval": None, "seeds": 1, "ids": [trial["id"]]}
        for draw, trial in enumerate(trials)
    ]
    return study_page(
        {
            "trials": trials,
            "settings": settings,
            "failed": [HOSTILE],
            "run_id": "abc",
            "refused": [HOSTILE],
        },
        name=HOSTILE,
        metric="accuracy",
        sign=1,
        curves={trial["id"]: [0.3, None, trial["accuracy"]] for trial in trials},
        command="perceiver tune digits",
        notes=["trial 3 was started again"],
    )


def test_a_browser_draws_every_figure_and_takes_no_text_for_code(tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    page.write_text(page_of(trials_of(12)), encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        tab.open(page.as_uri())
        tab.until("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
        headings = tab.value("[...document.querySelectorAll('h2')].map(each => each.textContent)")
        drawn = tab.value(
            "[...document.querySelectorAll('.js-plotly-plot')].map(each => each.data[0].type)"
        )
        rows = tab.value("document.querySelectorAll('#trials tr').length")
        title = tab.value("document.title")
        images = tab.value("document.querySelectorAll('img').length")
        asked = tab.value("performance.getEntriesByType('resource').length")
    assert headings == [
        "Settings by rank", "Failed trials", "Refused settings",
        "accuracy against FLOPs of a forward pass",
        "accuracy against parameters", "Settings", "Importance of the fields", "Learning curves",
    ]  # fmt: skip
    assert drawn == ["scatter", "scatter", "scatter", "bar", "scatter"]
    assert rows == 13
    assert (title, images, asked) == (f"study {HOSTILE}", 0, 0)
    assert not tab.errors


def test_a_field_that_matters_has_the_larger_importance():
    found = importances(trials_of(12), "accuracy", 1)
    assert set(found) == {
        "model.encoder.num_latents", "training.learning_rate", "model.adapter.kind"
    }  # fmt: skip
    assert found["model.encoder.num_latents"] > 0.6
    assert sum(found.values()) == pytest.approx(1)


def test_few_trials_or_one_field_have_no_importances():
    assert importances(trials_of(4), "accuracy", 1) == {}
    single = [{**trial, "params": {"a": n}} for n, trial in enumerate(trials_of(12))]
    assert importances(single, "accuracy", 1) == {}


def test_a_study_of_one_trial_has_a_page():
    text = page_of(trials_of(1))
    assert "Importance" not in text
    assert "1 setting in 1 training, ranked by" in text
    assert "along the front" not in text.lower()
