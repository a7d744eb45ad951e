"""The variants of `perceiver bench model`: our model, its peers, and the models that peers have."""

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from perceiver_model.adapters.configs import ConvStemConfig, ImageInput, PixelsConfig
from perceiver_model.config import EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.presets import PRESETS
from pipeline.errors import UserError

OURS = "ours"
PATHS = ("reference", "fused", "factored", "separable")
"""The names of `perceiver_model.attention.multi_head.AttentionPath`, without importing torch."""


class Package(NamedTuple):
    """The package of a peer.

    Attributes:
        distribution: The name of the distribution on PyPI.
        module: The module that it installs.
    """

    distribution: str
    module: str


PEERS = {
    "transformers": Package("transformers", "transformers"),
    "lucidrains": Package("perceiver-pytorch", "perceiver_pytorch"),
}
"""The peers and their packages."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison.

    Attributes:
        implementation: `ours` or one of `PEERS`.
        path: The attention path, for ours only.
        compiled: Whether `torch.compile` is applied.
        checkpointed: The fraction of the latents' self-attends whose activations are computed again
            in the backward pass, for ours only.
    """

    implementation: str
    path: str = "auto"
    compiled: bool = False
    checkpointed: float = 0.0

    @property
    def label(self) -> str:
        """The label: `ours`, `ours, fused`, `ours, checkpointed 0.25` or `transformers`."""
        path = "" if self.path == "auto" else f", {self.path}"
        return (
            self.implementation
            + path
            + (f", checkpointed {self.checkpointed:g}" if self.checkpointed else "")
        )


Compiled = Literal["all", "ours", "none"]
"""Which variants also get a compiled row: all, ours on the cheapest path, or none."""


def variants(
    peers: tuple[str, ...], *, compile: Compiled, paths: bool, checkpointed: tuple[float, ...] = ()
) -> list[Variant]:
    """Return the variants of all rows: ours first, then the peers.

    Args:
        peers: The names of the peers.
        compile: Which variants also get a compiled row.
        paths: Whether each of our attention paths gets a row.
        checkpointed: The fractions of activation checkpointing that get a row each.
    """
    kinds = [
        Variant(implementation=OURS, path=path) for path in ("auto", *(PATHS if paths else ()))
    ]
    kinds += [Variant(implementation=OURS, checkpointed=share) for share in checkpointed]
    kinds += [Variant(implementation=peer) for peer in peers]
    return [
        dataclasses.replace(kind, compiled=compiled)
        for kind in kinds
        for compiled in (False, True)
        if not compiled or compile == "all" or (compile == "ours" and kind == kinds[0])
    ]


def choose_peers(names: tuple[str, ...] | None, config: ClassifierConfig) -> tuple[str, ...]:
    """Return the requested peers, or for None all peers with such a model.

    Raises:
        UserError: If a peer is unknown, is not installed, or has no such model.
    """
    if names is None:
        names = tuple(peer for peer in PEERS if has_model(peer, config))
    for peer in names:
        if peer not in PEERS:
            raise UserError(f"--vs {peer}: no such peer; known: {', '.join(PEERS)}, none")
        if find_spec(PEERS[peer].module) is None:
            raise UserError(
                f"--vs {peer}: {PEERS[peer].distribution} is not installed: "
                "pip install 'perceiver-pipeline[bench]', or leave it out of --vs"
            )
        if not has_model(peer, config):
            has = [name for name, known in PRESETS.items() if has_model(peer, known)]
            raise UserError(f"--vs {peer}: has no such model; of the presets it has {_listed(has)}")
    return names


def has_model(peer: str, config: Any) -> bool:
    """Return whether the peer can build a model with the inputs and layers of a configuration."""
    if not isinstance(config, ClassifierConfig) or not isinstance(config.input, ImageInput):
        return False
    if peer == "transformers":
        return transformers_class(config) is not None
    return _lucidrains_has(config)


def transformers_class(config: ClassifierConfig) -> str | None:
    """Return the name of transformers' class for this model, or None.

    Its classes fix the front end, the position features and the decoder. Its settings allow one
    cross-attend, blocks with shared weights, and one width for both kinds of attends.
    """
    encoder, decoder, image = config.encoder, config.decoder, config.input
    one_decoder = decoder is not None and (
        (decoder.num_heads, decoder.qk_channels, decoder.value_channels, decoder.widening)
        == (1, None, None, 1)
    )
    fits = (
        one_decoder
        and isinstance(image, ImageInput)
        and image.channels == 3
        and encoder.dropout == 0
        and encoder.num_cross_attends == 1
        and (encoder.share_self_attends or encoder.num_blocks == 1)
        and encoder.cross_channels == encoder.self_channels
        and encoder.cross_value_channels == encoder.self_value_channels
    )
    if not fits:
        return None
    match config.adapter, config.positions:
        case PixelsConfig(num_channels=None), FourierConfig(
            num_bands=64, max_resolution=(224, 224)
        ):
            return "PerceiverForImageClassificationFourier"
        case PixelsConfig(num_channels=256), LearnedPositions(
            num_channels=256, projected_channels=256
        ):
            assert isinstance(image, ImageInput)
            square = image.height == image.width
            return "PerceiverForImageClassificationLearned" if square else None
        case (
            ConvStemConfig(num_channels=64, norm="batch"),
            FourierConfig(num_bands=64, max_resolution=(56, 56)),
        ):
            return "PerceiverForImageClassificationConvProcessing"
    return None


def as_transformers(config: ClassifierConfig) -> ClassifierConfig:
    """Return the same model, but with transformers' choices where it differs from DeepMind.

    These are the exact GELU, its padding in the convolutional stem and the decoder's query
    residual.
    """
    assert config.decoder is not None, "transformers_class refuses it"
    adapter = config.adapter
    if isinstance(adapter, ConvStemConfig):
        adapter = dataclasses.replace(adapter, padding="valid")
    return dataclasses.replace(
        config,
        adapter=adapter,
        encoder=dataclasses.replace(config.encoder, gelu="erf"),
        decoder=dataclasses.replace(config.decoder, gelu="erf", query_residual=True),
    )


def resized(config: ClassifierConfig, side: int) -> ClassifierConfig:
    """Return the same configuration for square images."""
    assert isinstance(config.input, ImageInput), "read_options refuses it"
    image = dataclasses.replace(config.input, height=side, width=side)
    return dataclasses.replace(config, input=image)


def _lucidrains_has(config: ClassifierConfig) -> bool:
    """Return whether lucidrains' Perceiver can be this model.

    It reads pixels with Fourier features, and spreads cross-attends evenly over its layers.
    """
    encoder, positions = config.encoder, config.positions
    return (
        isinstance(config.adapter, PixelsConfig)
        and config.adapter.num_channels is None
        and isinstance(positions, FourierConfig)
        and len(set(config.max_resolution)) == 1
        and encoder.cross_attend_layout == "interleaved"
        and self_attends_per_cross_attend(encoder) is not None
    )


def self_attends_per_cross_attend(encoder: EncoderConfig) -> int | None:
    """Return the number of self-attends after each cross-attend, or None if the numbers differ."""
    count, rest = divmod(encoder.num_blocks * encoder.num_self_attends, encoder.num_cross_attends)
    return None if rest else count


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
