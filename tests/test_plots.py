"""The picture of a study: every number and every line of its list can be read."""

import random
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image

from pipeline.tuning.plots import plot_study, study_figure

Box = tuple[float, float, float, float]


def study(num_trials: int, *, alike: bool = False, fields: int = 3) -> list[dict[str, Any]]:
    draw = random.Random(num_trials)
    names = ["model.encoder.num_latents", "training.learning_rate", "training.weight_decay",
             "model.encoder.cross_channels", "model.encoder.num_self_attends"]  # fmt: skip
    trials = [
        {
            # All but one in a corner, or anywhere.
            "accuracy": 0.9 - 0.8 * (number == 0) if alike else round(draw.random(), 2),
            "forward_flops": 1e7 + 4e7 * (number == 0)
            if alike
            else draw.choice([1.4e7, 1.9e7, 2.0e7, 8e7]),
            "stopped_early": bool(number % 2),
            "params": {name: draw.random() for name in names[:fields]},
        }
        for number in range(num_trials)
    ]
    return sorted(trials, key=lambda trial: -float(trial["accuracy"]))


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _extent(text: Text, renderer: Any) -> Box:
    """The extent of the text itself: an annotation's own would take its line in."""
    left, low, right, high = Text.get_window_extent(text, renderer).extents
    return left, low, right, high


@pytest.mark.parametrize(
    ("num_trials", "alike", "fields"),
    [(1, False, 3), (4, False, 3), (8, True, 1), (40, False, 3), (40, True, 3), (40, False, 5)],
)
def test_all_text_lies_inside_the_picture_and_covers_no_other(
    num_trials: int, alike: bool, fields: int
) -> None:
    figure = study_figure(study(num_trials, alike=alike, fields=fields), "digits", "accuracy")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()

    def boxes(texts: list[Any]) -> list[Box]:
        return [_extent(text, renderer) for text in texts]

    numbers, lines = list(axes.texts), list(figure.texts)
    assert [text.get_text() for text in numbers] == [str(n + 1) for n in range(num_trials)]
    assert [int(text.get_text().split()[0]) for text in lines] == list(range(1, num_trials + 1))
    labels = [axes.title, axes.xaxis.label, axes.yaxis.label]
    width, height = figure.bbox.width, figure.bbox.height
    every = boxes(numbers) + boxes(lines) + boxes(labels)
    for box in every:
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
    frame = axes.get_window_extent(renderer).extents
    for box in boxes(numbers):
        assert frame[0] <= box[0] < box[2] <= frame[2]
        assert frame[1] <= box[1] < box[3] <= frame[3]
    for place, box in enumerate(every):
        assert not any(overlap(box, other) for other in every[:place])
    assert max(width, height) < 2400


def test_it_is_a_png(tmp_path: Path) -> None:
    plot_study(study(3), tmp_path / "plot.png", "digits", "accuracy")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.format == "PNG"
        assert plot.width > 600
