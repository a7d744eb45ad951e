"""The gate's test and what a model reads of a set made anew, by themselves."""

from dataclasses import replace
from math import comb

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.tree import RegistryConfig
from pipeline.media import (
    AudioFormat,
    FittedTableFormat,
    ImageFormat,
    MelFormat,
    PointsFormat,
    PointsFourier,
    TableFormat,
    TextFormat,
    fit_vocabulary,
)
from pipeline.media.table.row_encoder import RowEncoder
from pipeline.registry.gate import Comparison
from pipeline.registry.paired_test import sign_p, units_needed
from pipeline.registry.reading import other_input

RULES = RegistryConfig()


def comparison(wins: int, losses: int, samples: int = 600) -> Comparison:
    both = 500
    return Comparison(samples, both + wins, both + losses, wins, losses)


def test_one_better_sample_of_600_replaces_no_champion() -> None:
    assert not comparison(1, 0).passes(RULES)
    assert not comparison(4, 0).passes(RULES)
    assert comparison(5, 0).passes(RULES)
    assert comparison(60, 30).passes(RULES)
    assert not comparison(60, 55).passes(RULES)


def test_a_gain_that_is_sure_but_smaller_than_asked_is_refused() -> None:
    rules = RegistryConfig(min_gain=0.01)
    assert not comparison(5, 0).passes(rules)
    assert comparison(6, 0).passes(rules), "6 of 600 are 0.01 exactly"


def test_alpha_1_asks_for_any_gain_and_never_for_none() -> None:
    rules = RegistryConfig(alpha=1.0)
    assert comparison(1, 0).passes(rules)
    assert not comparison(0, 0).passes(rules)
    assert not comparison(3, 3).passes(rules)
    assert not comparison(0, 1).passes(rules)


@settings(deadline=None)
@given(wins=st.integers(0, 40), losses=st.integers(0, 40))
def test_p_is_the_share_of_fair_coin_tosses_with_as_many_heads(wins: int, losses: int) -> None:
    tosses = wins + losses
    tail = sum(comb(tosses, heads) for heads in range(wins, tosses + 1)) / 2**tosses
    assert sign_p(wins, losses) == pytest.approx(tail, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    losses=st.integers(0, 30),
    samples=st.integers(1, 200),
    alpha=st.sampled_from([1e-6, 0.05, 0.5, 1.0]),
    min_gain=st.sampled_from([0.0, 0.05]),
)
def test_the_wins_needed_are_the_fewest_that_pass(
    losses: int, samples: int, alpha: float, min_gain: float
) -> None:
    rules = RegistryConfig(alpha=alpha, min_gain=min_gain)
    losses = min(losses, samples)
    passing = [
        wins
        for wins in range(samples - losses + 1)
        if Comparison(samples, wins, losses, wins, losses).passes(rules)
    ]
    found = Comparison(samples, 0, losses, 0, losses).wins_needed(rules)
    assert found == min(passing, default=None)


def test_fewer_samples_than_could_show_anything_are_known_to_be_too_few() -> None:
    assert units_needed(RULES.alpha) == 5
    assert units_needed(1.0) == 1


@pytest.mark.parametrize("values", [{"alpha": 0.0}, {"alpha": 1.5}, {"min_gain": 1.0},
                                    {"min_gain": -0.1}, {"alpha": float("nan")}])  # fmt: skip
def test_rules_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        RegistryConfig.model_validate(values)


IMAGE = ImageFormat(height=28, width=28)
POINTS = PointsFormat(num_points=64, sample="surface")


@pytest.mark.parametrize(
    ("stored", "media", "differs"),
    [
        (IMAGE, replace(IMAGE, encoding="jpeg", max_pixels=10_000), None),
        (IMAGE, replace(IMAGE, height=32), "height was 32, is 28"),
        (POINTS, replace(POINTS, seed=3, fourier=PointsFourier(num_bands=2)), None),
        (POINTS, replace(POINTS, sample="points"), "sample was 'points', is 'surface'"),
        (POINTS, replace(POINTS, sample="auto"), None),
        (TextFormat(max_length=64), TextFormat(max_length=64, cut="all", overlap=8), None),
        (TextFormat(max_length=64), TextFormat(max_length=32), "max_length was 32, is 64"),
        (AudioFormat(), AudioFormat(encoding="flac", min_seconds=0.5), None),
        (AudioFormat(), AudioFormat(mel=MelFormat()), "mel was"),
        (IMAGE, POINTS, "takes points, and the set holds image"),
        (TableFormat(numeric=("a", "b")), TableFormat(numeric=("b",)), None),
        (TableFormat(numeric=("b",)), TableFormat(numeric=("a", "b")), "numeric column 'a'"),
        (TableFormat(numeric=("a",)), TableFormat(categorical=("a",)), "categorical column 'a'"),
    ],
)  # fmt: skip
def test_only_what_goes_into_a_model_makes_sets_incomparable(stored, media, differs) -> None:
    found = other_input(stored, media)
    assert found is None if differs is None else found is not None and differs in found


values = st.one_of(st.none(), st.sampled_from("abcdefg"))
rows = st.lists(
    st.fixed_dictionaries(
        {
            "x": st.one_of(st.none(), st.floats(-1e6, 1e6)),
            "y": st.floats(-10, 10),
            "c": values,
            "d": values,
        }
    ),
    min_size=1,
    max_size=12,
)


def fitted(train: list[dict], fmt: TableFormat) -> FittedTableFormat:
    schema = pa.schema(
        [(name, pa.float64()) for name in "xy"] + [(name, pa.string()) for name in "cd"]
    )
    batch = pa.RecordBatch.from_pylist(train, schema)
    return FittedTableFormat.of(fmt, fit_vocabulary([batch], fmt))


@settings(deadline=None)
@given(ours=rows, theirs=rows, judged=rows)
def test_stored_rows_reach_a_model_of_another_fit_as_raw_rows_would(ours, theirs, judged) -> None:
    stored = fitted(ours, TableFormat(numeric=("x", "y"), categorical=("c", "d")))
    media = fitted(theirs, TableFormat(numeric=("y", "x"), categorical=("d",), max_categories=3))
    encoder = RowEncoder(stored, media)
    table = np.stack([stored.encode_row(row) for row in judged])
    wanted = np.stack([media.encode_row(row) for row in judged])
    uncertain = encoder.uncertain(table)
    np.testing.assert_array_equal(encoder(table)[~uncertain], wanted[~uncertain])
    lost = set(media.vocabulary.categories["d"]) - set(stored.vocabulary.categories["d"])
    unknown = [row["d"] is not None and row["d"] not in stored.vocabulary.categories["d"]
               for row in judged]  # fmt: skip
    assert uncertain.tolist() == [bool(lost) and one for one in unknown]


def test_an_index_of_no_category_is_refused() -> None:
    fmt = fitted([{"x": 1.0, "y": 1.0, "c": "a", "d": "a"}], TableFormat(categorical=("c",)))
    for wrong in (-1.0, 2.0, 0.5, np.inf):
        with pytest.raises(ValueError, match="index of no category"):
            RowEncoder(fmt, fmt)(np.array([[wrong]]))
