"""A small TabNet (Arik and Pfister, arXiv 1908.07442): sparse attentive steps over features."""

import torch
from torch import nn

RELAXATION = 1.3
"""How often a feature may be chosen again: γ of the paper, section 3.2."""
SPARSITY = 1e-3
"""The weight of the masks' entropy in the loss: λ_sparse."""
EPSILON = 1e-10


class TabNet(nn.Module):
    """Steps that each choose features by sparsemax, and add to the decision.

    The feature transformer of each step has two layers that all steps share and two of its own.
    Batch normalisation is over the whole batch: the paper's ghost batches are for larger ones.

    Args:
        features: The number of features.
        num_classes: The number of classes.
        decision_dim: The channels of the decision, N_d of the paper.
        attention_dim: The channels from which the next features are chosen, N_a of the paper.
        steps: The number of steps.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        decision_dim: int,
        attention_dim: int,
        steps: int = 3,
    ) -> None:
        super().__init__()
        self.decision_dim, width = decision_dim, decision_dim + attention_dim
        self.norm = nn.BatchNorm1d(features)
        shared = nn.ModuleList([_GatedLayer(features, width).linear, _GatedLayer(width).linear])
        self.transformers = nn.ModuleList(
            _FeatureTransformer(shared, width) for _ in range(steps + 1)
        )
        self.attend = nn.ModuleList(
            nn.Sequential(nn.Linear(attention_dim, features, bias=False), nn.BatchNorm1d(features))
            for _ in range(steps)
        )
        self.head = nn.Linear(decision_dim, num_classes)
        self.penalty = torch.zeros(())
        """What the last forward pass adds to the loss."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, classes]` of features `[batch, features]`."""
        rows = self.norm(rows)
        prior, entropy = torch.ones_like(rows), rows.new_zeros(())
        hidden = self.transformers[0](rows)
        decision = torch.zeros_like(hidden[:, : self.decision_dim])
        for attend, transform in zip(self.attend, self.transformers[1:], strict=True):
            mask = sparsemax(attend(hidden[:, self.decision_dim :]) * prior)
            entropy = entropy - (mask * (mask + EPSILON).log()).sum(dim=1).mean()
            prior = prior * (RELAXATION - mask)
            hidden = transform(mask * rows)
            decision = decision + hidden[:, : self.decision_dim].relu()
        self.penalty = SPARSITY * entropy / len(self.attend)
        logits: torch.Tensor = self.head(decision)
        return logits


def sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """Return the nearest distribution to scores `[batch, features]`, with exact zeros.

    Martins and Astudillo, arXiv 1602.02068, algorithm 1.
    """
    ordered = scores.sort(dim=1, descending=True).values
    above = ordered.cumsum(dim=1) - 1
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    support = (ranks * ordered > above).sum(dim=1, keepdim=True)
    threshold = above.gather(1, support - 1) / support
    return (scores - threshold).clamp(min=0)


class _GatedLayer(nn.Module):
    """A linear layer, batch normalisation and a gated linear unit.

    Args:
        channels: The channels of the input.
        width: The channels of the output; None keeps those of the input.
        linear: A linear layer that is shared; None makes one.
    """

    def __init__(
        self, channels: int, width: int | None = None, linear: nn.Module | None = None
    ) -> None:
        super().__init__()
        width = width or channels
        self.linear = linear or nn.Linear(channels, 2 * width, bias=False)
        self.norm = nn.BatchNorm1d(2 * width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.glu(self.norm(self.linear(rows)), dim=1)


class _FeatureTransformer(nn.Module):
    """Two shared gated layers and two of a step, with scaled shortcuts after the first."""

    def __init__(self, shared: nn.ModuleList, width: int) -> None:
        super().__init__()
        layers = [_GatedLayer(width, linear=linear) for linear in shared]
        self.layers = nn.ModuleList([*layers, _GatedLayer(width), _GatedLayer(width)])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.layers[0](rows)
        for layer in self.layers[1:]:
            hidden = (hidden + layer(hidden)) * 0.5**0.5
        return hidden
