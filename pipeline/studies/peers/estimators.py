"""The peers of scikit-learn, for tables: gradient boosting and logistic regression."""

from collections.abc import Callable, Sequence
from typing import Any


def boosting(seed: int, categorical: Sequence[bool]) -> Any:
    """Return histogram gradient boosting, as scikit-learn sets it.

    Args:
        seed: The seed.
        categorical: Which columns are categories. It reads NaN as a missing value.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(categorical_features=list(categorical), random_state=seed)


def logistic(seed: int, categorical: Sequence[bool]) -> Any:
    """Return logistic regression, as scikit-learn sets it, with steps enough to converge."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000, random_state=seed)


def count_numbers(estimator: Any) -> int:
    """Return how many numbers a fitted estimator has learned: leaves, or coefficients."""
    if hasattr(estimator, "coef_"):
        return int(estimator.coef_.size + estimator.intercept_.size)
    return sum(tree.get_n_leaf_nodes() for trees in estimator._predictors for tree in trees)


ESTIMATORS: dict[str, tuple[Callable[[int, Sequence[bool]], Any], bool]] = {
    "boosting": (boosting, False),
    "logistic": (logistic, True),
}
"""What makes each estimator, and whether it reads the features that TabNet reads: standardised
numbers, flags of missing ones, and categories one by one. The other reads the values."""
