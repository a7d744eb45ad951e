"""The peers of tables: what they read, TabNet's attention, and that scikit-learn's get our rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from perceiver_model.adapters.configs import TableInput
from perceiver_model.adapters.table import TableRows
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.data import make_set
from pipeline.studies.fitting import fit_peer
from pipeline.studies.peer_inputs import TableReading
from pipeline.studies.peer_training import train_peer
from pipeline.studies.peers.table import Rows, count_parameters, sized_peer
from pipeline.studies.peers.tabnet import TabNet, sparsemax
from pipeline.studies.planning import base_config, bases_of
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.table_data import removed_values, table_named, without


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    study, asked = STUDIES["tables"], ("training.epochs=60",)
    scale, output = study.scales["tiny"], str(tmp_path_factory.mktemp("tables"))
    base = base_config(Request("tables", scale="tiny", output=output, overrides=asked), scale)
    return bases_of(study, scale, base, asked)


def on_set(base: Config, name: str, console: Console) -> Config:
    made = make_set(base, name, 0, Path(str(base.folder)), None, console)
    return with_values(base, {"shards": str(made.location)})


def test_sparsemax_is_the_nearest_distribution() -> None:
    """Against a search over the thresholds, which the projection must have."""
    scores = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sparsemax(scores)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(50, dtype=torch.float64))
    assert (found == 0).any() and (found >= 0).all()
    low, high = scores.min(dim=1).values - 1, scores.max(dim=1).values
    for _ in range(80):
        middle = (low + high) / 2
        too_much = (scores - middle[:, None]).clamp(min=0).sum(dim=1) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    torch.testing.assert_close(found, (scores - low[:, None]).clamp(min=0))


def test_tabnet_chooses_few_features_and_is_penalised_for_many() -> None:
    torch.manual_seed(0)
    model, rows = TabNet(20, 3, 8, 8), torch.randn(32, 20)
    assert model(rows).shape == (32, 3)
    assert 0 < model.penalty.item() <= 1e-3 * np.log(20)
    for part in model.attend:  # one feature only: no entropy
        part[1].bias.data[4] = 1000.0
    model(rows)
    assert abs(model.penalty.item()) < 1e-6
    model.eval()
    changed = rows.clone()
    changed[:, 5] += 3.0
    hidden = model.transformers[0](model.norm(rows))
    mask = sparsemax(model.attend[0](hidden[:, model.decision_dim :]))
    assert mask[:, 4].eq(1).all()


@pytest.mark.parametrize("features", [18, 27, 128])
@pytest.mark.parametrize("wanted", [12_000, 25_000, 200_000])
def test_a_tabnet_has_the_parameters_of_the_perceiver_within_5_percent(
    features: int, wanted: int
) -> None:
    assert abs(count_parameters(sized_peer("tabnet", Rows(features, 5), wanted)) - wanted) <= (
        0.05 * wanted
    )


def test_peers_read_numbers_flags_and_categories() -> None:
    table = TableInput(num_numeric=2, mean=(1.0, 0.0), std=(2.0, 1.0), num_categories=(2,))
    reading = TableReading(table, 3, torch.device("cpu"))
    nan = float("nan")
    rows = TableRows(
        torch.tensor([[5.0, nan], [1.0, 3.0], [nan, nan]], dtype=torch.float64),
        torch.tensor([[1], [7], [-1]]),
    )
    expected = [[2, 0, 0, 1, 0, 1, 0], [0, 3, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0, 0]]
    assert reading(rows).tolist() == expected
    assert reading.shape == Rows(7, 3)
    assert reading(reading.blank()).tolist() == [[0, 0, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("name", ["boosting", "logistic"])
def test_a_fitted_peer_gets_the_rows_of_the_set(
    name: str, bases: dict[str, Config], ray_cluster: None, console: Console
) -> None:
    """Its predictions are those of scikit-learn on the table itself, cut and emptied alike."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pipeline.studies.table_data import fold_of_rows

    data = without("wine", 0.3)
    found = fit_peer(on_set(bases[data], data, console), name)
    table = table_named("wine")
    rows = np.where(removed_values(data, table.rows.shape), np.nan, table.rows)
    classes, test = np.array(table.classes), fold_of_rows(table.classes, 0) == 0
    if name == "boosting":
        theirs = HistGradientBoostingClassifier(random_state=0)
    else:
        scaled = StandardScaler(), SimpleImputer(strategy="mean", add_indicator=True)
        theirs = make_pipeline(*scaled, LogisticRegression(max_iter=2000))
    wanted = theirs.fit(rows[~test], classes[~test]).score(rows[test], classes[test])
    # Boosting sorts rows into trees in the order that they have; wine has 36 rows of test.
    assert abs(found["accuracy"] - wanted) <= 1 / test.sum() + 1e-9
    assert found["parameters"] > 0 and (found["forward_flops"] > 0) == (name == "logistic")


def test_tabnet_learns_wine(bases: dict[str, Config], ray_cluster: None, console: Console) -> None:
    found = train_peer(on_set(bases["wine"], "wine", console), "tabnet")
    assert found["accuracy"] > 0.8
    assert found["forward_flops"] > 0
