"""How far a model's probabilities are from the share of right answers (Guo et al. 2017)."""

from typing import Any

import numpy as np

NUM_BINS = 15
DEFINITION = (
    f"expected calibration error (Guo et al. 2017) over {NUM_BINS} bins of equal width: the mean "
    "over all items of |accuracy - confidence| of an item's bin; a confidence of exactly 1 has a "
    "bin of its own, as in torchmetrics"
)


class Calibration:
    """Sums by bins of confidence.

    The bins are those of torchmetrics: [0, 1/15), [1/15, 2/15) … [14/15, 1), and [1, 1], with
    confidences rounded to float32.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((3, NUM_BINS + 1))
        """The items, their confidences and the right ones, by bin."""

    def update(self, confidences: np.ndarray, right: np.ndarray) -> None:
        """Add items.

        Args:
            confidences: The probabilities of the answers, floating-point `[items]`.
            right: Which answers are right, bool `[items]`.
        """
        single = confidences.astype(np.float32)
        edges = np.linspace(0, 1, NUM_BINS + 1, dtype=np.float32)
        bins = np.searchsorted(edges, single, side="right") - 1
        for row, values in zip(self.sums, (None, confidences, right), strict=True):
            row += np.bincount(bins, values, minlength=NUM_BINS + 1)

    def merge(self, other: "Calibration") -> None:
        """Add the items of another rank."""
        self.sums += other.sums

    def result(self) -> dict[str, Any]:
        """Return `definition`, `error` and `bins`; `error` is None without any item.

        A bin has `from`, `to`, `items`, and the mean `confidence` and `accuracy` of its items,
        which are None if it has none.
        """
        items, confidences, right = self.sums
        total = items.sum()
        error = np.abs(right - confidences).sum() / total if total else None
        edges = [*np.linspace(0, 1, NUM_BINS + 1).tolist(), 1.0]
        bins = [
            {
                "from": edges[number],
                "to": edges[number + 1],
                "items": int(count),
                "confidence": float(confidences[number] / count) if count else None,
                "accuracy": float(right[number] / count) if count else None,
            }
            for number, count in enumerate(items)
        ]
        return {
            "definition": DEFINITION,
            "error": None if error is None else float(error),
            "bins": bins,
        }
