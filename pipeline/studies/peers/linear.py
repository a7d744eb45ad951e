"""Models whose cost is linear in the tokens: Performer and Set Transformer, a token each pixel."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.multi_head import merge_heads, split_heads


class Performer(nn.Module):
    """A Transformer whose attention is FAVOR+ (Choromanski et al., arXiv 2009.14794).

    Pre-norm layers, as those of the full-attention peer, then the mean over tokens.

    Args:
        channels: The channels of a pixel, with the features of its position.
        num_classes: The number of classes.
        dim: The channels of a token, a multiple of `heads`.
        hidden: The hidden width of the MLPs.
        depth: The number of layers.
        heads: The number of attention heads.
    """

    def __init__(
        self, channels: int, num_classes: int, dim: int, hidden: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, dim)
        self.layers = nn.Sequential(*(PerformerLayer(dim, hidden, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, classes]` of images `[batch, channels, height, width]`."""
        tokens = self.layers(self.embed(images.flatten(2).mT))
        logits: torch.Tensor = self.head(self.norm(tokens).mean(dim=1))
        return logits


class PerformerLayer(nn.Module):
    """A pre-norm layer of a Transformer with FAVOR+ in place of softmax attention."""

    projection: torch.Tensor

    def __init__(self, dim: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )
        width = dim // heads
        # The paper: m = Θ(d log d) features suffice. It takes d log d, and so does this.
        num_features = max(2, round(width * math.log(width)))
        self.register_buffer("projection", orthogonal_features(num_features, width))
        nn.init.xavier_uniform_(self.qkv.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens `[batch, tokens, dim]` after the layer."""
        q, k, v = (
            split_heads(each, self.heads)
            for each in self.qkv(self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        tokens = tokens + self.output(merge_heads(favor(q, k, v, self.projection)))
        after: torch.Tensor = tokens + self.mlp(tokens)
        return after


def orthogonal_features(num_features: int, width: int) -> torch.Tensor:
    """Return random vectors `[num_features, width]`, orthogonal in blocks of `width`.

    Each has the length of a Gaussian vector (paper, section 2.4).
    """
    # On the meta device, where sizes are counted, nothing can be decomposed.
    if torch.empty(0).is_meta:
        return torch.empty(num_features, width)
    blocks = [_rotation(width) for _ in range(math.ceil(num_features / width))]
    lengths = torch.randn(num_features, width).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:num_features] * lengths


def _rotation(width: int) -> torch.Tensor:
    """Return a random orthogonal matrix `[width, width]`, uniformly distributed."""
    q, r = torch.linalg.qr(torch.randn(width, width))
    return q * r.diagonal().sign()  # without the signs, some entries would never be positive


def favor(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor
) -> torch.Tensor:
    """Return FAVOR+'s estimate of softmax attention, `[batch, heads, tokens, width]`.

    Its time and memory are linear in the tokens: with positive features φ, it is
    φ(q) (φ(k)ᵀ v), each row divided by φ(q) Σ φ(k).

    Args:
        q: Queries `[batch, heads, tokens, width]`.
        k: Keys of the same shape.
        v: Values of the same shape.
        projection: Random vectors `[features, width]`.
    """
    queries, keys = (_positive_features(each, projection) for each in (q, k))
    # The largest exponent is taken away: of each query, and of all keys together.
    features_q = (queries - queries.amax(dim=-1, keepdim=True)).exp()
    features_k = (keys - keys.amax(dim=(-1, -2), keepdim=True)).exp()
    weighted = features_q @ (features_k.mT @ v)
    return weighted / (features_q @ features_k.sum(dim=-2).unsqueeze(-1)).clamp(min=1e-9)


def _positive_features(vectors: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return the exponents w · x - |x|² / 2 of positive features (paper, equation 5)."""
    scaled = vectors * vectors.shape[-1] ** -0.25
    return scaled @ projection.mT - scaled.square().sum(dim=-1, keepdim=True) / 2


class SetTransformer(nn.Module):
    """Induced set attention blocks and pooling by attention (Lee et al., arXiv 1810.00825).

    Args:
        channels: The channels of a pixel, with the features of its position.
        num_classes: The number of classes.
        dim: The channels of a token, a multiple of `heads`.
        hidden: The hidden width of the row-wise networks.
        depth: The number of induced set attention blocks.
        heads: The number of attention heads.
        num_inducing: The number of inducing points.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        dim: int,
        hidden: int,
        depth: int,
        heads: int,
        num_inducing: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, dim)
        self.blocks = nn.Sequential(*(ISAB(dim, hidden, heads, num_inducing) for _ in range(depth)))
        self.seed = _points(1, dim)
        self.pool = MAB(dim, hidden, heads)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, classes]` of images `[batch, channels, height, width]`."""
        tokens = self.blocks(self.embed(images.flatten(2).mT))
        pooled = self.pool(self.seed.expand(len(tokens), -1, -1), tokens)
        logits: torch.Tensor = self.head(pooled.squeeze(1))
        return logits


class MAB(nn.Module):
    """A multihead attention block: queries read tokens, then a row-wise network (equation 6)."""

    def __init__(self, dim: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.attention_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.network = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return queries `[batch, queries, dim]` after reading tokens `[batch, tokens, dim]`."""
        q = split_heads(self.query(queries), self.heads)
        k, v = (split_heads(each, self.heads) for each in self.key_value(tokens).chunk(2, dim=-1))
        read = self.output(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        read = self.attention_norm(queries + read)
        after: torch.Tensor = self.norm(read + self.network(read))
        return after


class ISAB(nn.Module):
    """An induced set attention block: tokens read inducing points that have read the tokens."""

    def __init__(self, dim: int, hidden: int, heads: int, num_inducing: int) -> None:
        super().__init__()
        self.inducing = _points(num_inducing, dim)
        self.read, self.write = MAB(dim, hidden, heads), MAB(dim, hidden, heads)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens `[batch, tokens, dim]` after the block."""
        induced = self.read(self.inducing.expand(len(tokens), -1, -1), tokens)
        written: torch.Tensor = self.write(tokens, induced)
        return written


def _points(number: int, dim: int) -> nn.Parameter:
    points = nn.Parameter(torch.empty(1, number, dim))
    nn.init.xavier_uniform_(points)
    return points
