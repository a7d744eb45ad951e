"""What a study has found, on its page: numbers, curves, figures and the index."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_studies import ABOUT, OURS, PEER, two_arms

from pipeline.studies.index import write_index
from pipeline.studies.metrics import Metric
from pipeline.studies.page import page_text, write_study
from pipeline.studies.running import logged_metrics
from pipeline.studies.study import Arm, Found, Pair, Study
from pipeline.studies.summary import by_label, found_of

ROW = {
    "parameters": 1234,
    "forward_flops": 5_600_000,
    "seconds": 30.0,
    "samples_per_second": 800.0,
}
VALUES = {OURS: [0.90, 0.91, 0.92], PEER: [0.95, 0.955, 0.965]}


@pytest.fixture
def found_values() -> tuple[Found, dict[str, list[dict[str, Any]]]]:
    rows = {label: [{**ROW, "accuracy": v} for v in values] for label, values in VALUES.items()}
    return found_of(two_arms(), rows), rows


def test_a_page_tells_where_a_peer_wins(
    found_values: tuple[Found, dict[str, list[dict[str, Any]]]],
) -> None:
    study, (found, rows) = two_arms(), found_values
    page = page_text(study, found, rows, ABOUT)
    assert page.startswith(f"# {study.question}\n\n**A ViT +4.7 points.**")
    assert "| ours | 91.00 | 88.52 to 93.48 | 3 | 1,234 | 5.6 | 30 | 800 |" in page
    assert "| a ViT | ours | +4.67 | +3.95 to +5.38 | 0.001 |" in page
    assert "```bash\nperceiver study permuted --scale small\n```" in page
    for text in (*study.uncontrolled, study.paper):
        assert " ".join(text.split()) in " ".join(page.split())
    outside = [line for line in page.splitlines() if not line.startswith("|")]
    assert max(map(len, outside)) <= 100


def test_the_index_has_a_row_for_each_study(
    found_values: tuple[Found, dict[str, list[dict[str, Any]]]], tmp_path: Path
) -> None:
    found, rows = found_values
    for name in ("one", "two"):
        write_study(tmp_path, replace(two_arms(), name=name), found, rows, ABOUT)
    index = write_index(tmp_path).read_text()
    for name in ("one", "two"):
        assert f"| [Does it need the image's structure?]({name}.md) | A ViT +4.7 points. |" in index
        assert (tmp_path / f"{name}.svg").read_text().count("ours") == 1
    assert "± 0.7 points, 3 seeds | `perceiver study permuted --scale small` |" in index


def test_the_same_results_make_the_same_figures(
    found_values: tuple[Found, dict[str, list[dict[str, Any]]]], tmp_path: Path
) -> None:
    found, rows = found_values
    for folder in ("a", "b"):
        write_study(tmp_path / folder, two_arms(), found, rows, ABOUT)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


MILLISECONDS = Metric(
    "step", "time of a step", "ms", 1000, ".1f", is_ratio=True, along="tokens", log_along=True
)
SCORE = Metric("score", "score", spec=".1f")


def curves_study() -> Study:
    """One arm whose work returns a curve, and the same curve as arms of one point each."""
    return replace(
        two_arms(),
        arms=(
            Arm("whole", work="costs", also=("half",)),
            *(Arm(f"apart at {n}", work="costs", line=("apart", n)) for n in (10, 1000)),
        ),
        pairs=(
            Pair("whole", "half", "score"),
            Pair("apart", "whole", "step", 10),
            Pair("apart", "whole", "step", 1000),
        ),
        metrics=(SCORE, MILLISECONDS),
        columns=(),
        answer=lambda found: f"{len(found.differences)} differences",
    )


def curves_results() -> dict[str, list[dict[str, Any]]]:
    def whole(seed: int) -> dict[str, Any]:
        curve = {"10": 0.001 * (1 + seed), "1000": None}
        ends = "it ends before 1,000 tokens"
        return {"score": 3.0 + seed, "step": curve, "ends": ends, "also": {"half": {"score": seed}}}

    return {
        "whole": [whole(seed) for seed in range(3)],
        "apart at 10": [{"step": value} for value in (0.004, 0.0081, 0.0119)],
        "apart at 1000": [{"step": 0.5} for _ in range(3)],
    }


def test_metrics_are_numbers_or_curves_and_are_compared_by_differences_or_ratios() -> None:
    study = curves_study()
    results = by_label(study, curves_results())
    found = found_of(study, results)
    assert {label: mean.mean for label, mean in found.means.items()} == {"whole": 4.0, "half": 1.0}
    curves = found.curves("step")
    assert {label: list(curve) for label, curve in curves.items()} == {
        "whole": [10],
        "apart": [10, 1000],
    }
    # What a curve does not reach is not compared.
    assert [(d.metric, d.at) for d in found.differences] == [("score", None), ("step", 10)]
    ratio = found.difference("apart", "whole", "step", 10)
    assert MILLISECONDS.shown_difference(ratio.mean) == "× 4.01"
    page = page_text(study, found, results, ABOUT)
    for line in (
        "| arm | score | interval | seeds |",
        "| whole | 4.0 | 1.5 to 6.5 | 3 |",
        "| time of a step, ms; tokens | 10 | 1,000 |",
        "| arm | over | tokens | ratio | interval | p, corrected |",
        "- whole: it ends before 1,000 tokens",
        "![time of a step by tokens](permuted-step-curves.svg)",
    ):
        assert line in page.splitlines(), page
    assert "| apart | whole | 10 | × 4.01 |" in page
    # What is compared by ratios has a geometric mean, and an interval above zero.
    assert found.curves("step")["whole"][10].mean == pytest.approx(6 ** (1 / 3) / 1000)
    assert found.curves("step")["whole"][10].low > 0


def test_curves_are_logged_by_their_numbers() -> None:
    found = {
        "score": 2,
        "step": {"10": 0.5, "100": None},
        "also": {"x": {"score": 1}},
        "label": "a",
    }
    assert logged_metrics(found) == {"study_score": 2, "study_step_at_10": 0.5}


def test_the_first_seeds_pictures_are_on_the_page(
    found_values: tuple[Found, dict[str, list[dict[str, Any]]]], tmp_path: Path
) -> None:
    found, rows = found_values
    for label in (OURS, PEER):
        for seed, row in enumerate(rows[label]):
            file = tmp_path / f"{label} {seed}.png"
            file.write_text(file.stem)
            told = f"Maps of {label}. Of one seed."
            row["pictures"] = [{"file": str(file), "name": "maps", "caption": told}]
    page = write_study(tmp_path / "page", two_arms(), found, rows, ABOUT)
    for label, name in ((OURS, "permuted-maps-ours.png"), (PEER, "permuted-maps-a-vit.png")):
        assert f"![Maps of {label}]({name})\n\nMaps of {label}. Of one seed." in page.read_text()
        assert (tmp_path / "page" / name).read_text() == f"{label} 0"
