"""What `perceiver bench model` compares: our model and its peers, and who has which model."""

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from perceiver_model.adapters.configs import ConvStem, ImageInput, Pixels
from perceiver_model.config import EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.presets import PRESETS
from pipeline.errors import UserError

OURS = "ours"
PATHS = ("reference", "fused", "factored", "separable")
"""The names of `perceiver_model.attention.multi_head.AttentionPath`, without importing torch."""


class Package(NamedTuple):
    """Where a peer comes from: its distribution on PyPI, and the module that it installs."""

    distribution: str
    module: str


PEERS = {
    "transformers": Package("transformers", "transformers"),
    "lucidrains": Package("perceiver-pytorch", "perceiver_pytorch"),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison.

    Attributes:
        implementation: `ours` or one of `PEERS`.
        path: the attention path, of ours only.
        compiled: whether `torch.compile` is applied.
        checkpointed: share of the latents' self-attends whose activations are computed again in the
            backward pass, of ours only.
    """

    implementation: str
    path: str = "auto"
    compiled: bool = False
    checkpointed: float = 0.0

    @property
    def label(self) -> str:
        """`ours`, `ours, fused`, `ours, checkpointed 0.25`, `transformers`."""
        path = "" if self.path == "auto" else f", {self.path}"
        return (
            self.implementation
            + path
            + (f", checkpointed {self.checkpointed:g}" if self.checkpointed else "")
        )


def variants(
    peers: tuple[str, ...], *, compile: bool, paths: bool, checkpointed: tuple[float, ...] = ()
) -> list[Variant]:
    """Every row: ours first, then the peers; each as it is and, if asked, compiled."""
    kinds = [
        Variant(implementation=OURS, path=path) for path in ("auto", *(PATHS if paths else ()))
    ]
    kinds += [Variant(implementation=OURS, checkpointed=share) for share in checkpointed]
    kinds += [Variant(implementation=peer) for peer in peers]
    return [
        dataclasses.replace(kind, compiled=compiled)
        for kind in kinds
        for compiled in ((False, True) if compile else (False,))
    ]


def choose_peers(names: tuple[str, ...] | None, config: ClassifierConfig) -> tuple[str, ...]:
    """The peers asked for, or, for None, those that have a model like the configuration's.

    Raises:
        UserError: a peer that is unknown, not installed, or without such a model.
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
    """Whether the peer can build a model with the inputs and the layers of a configuration."""
    if not isinstance(config, ClassifierConfig) or not isinstance(config.input, ImageInput):
        return False
    if peer == "transformers":
        return transformers_class(config) is not None
    return _lucidrains_has(config)


def transformers_class(config: ClassifierConfig) -> str | None:
    """The class of transformers that is this model, or None.

    Its classes fix the front end, the position features and the decoder; its settings are one
    cross-attend, blocks of shared weights, and one width for both kinds of attends.
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
        case Pixels(num_channels=None), FourierConfig(num_bands=64, max_resolution=(224, 224)):
            return "PerceiverForImageClassificationFourier"
        case Pixels(num_channels=256), LearnedPositions(num_channels=256, projected_channels=256):
            assert isinstance(image, ImageInput)
            square = image.height == image.width
            return "PerceiverForImageClassificationLearned" if square else None
        case (
            ConvStem(num_channels=64, norm="batch"),
            FourierConfig(num_bands=64, max_resolution=(56, 56)),
        ):
            return "PerceiverForImageClassificationConvProcessing"
    return None


def as_transformers(config: ClassifierConfig) -> ClassifierConfig:
    """The same model, computing what transformers does where it departs from DeepMind's.

    The exact GELU, its padding of the convolutional stem, the decoder's query residual.
    """
    assert config.decoder is not None, "transformers_class refuses it"
    adapter = config.adapter
    if isinstance(adapter, ConvStem):
        adapter = dataclasses.replace(adapter, padding="valid")
    return dataclasses.replace(
        config,
        adapter=adapter,
        encoder=dataclasses.replace(config.encoder, gelu="erf"),
        decoder=dataclasses.replace(config.decoder, gelu="erf", query_residual=True),
    )


def resized(config: ClassifierConfig, side: int) -> ClassifierConfig:
    """The same of square images."""
    assert isinstance(config.input, ImageInput), "read_options refuses it"
    image = dataclasses.replace(config.input, height=side, width=side)
    return dataclasses.replace(config, input=image)


def _lucidrains_has(config: ClassifierConfig) -> bool:
    """It reads pixels with Fourier features, and spreads cross-attends evenly over its layers."""
    encoder, positions = config.encoder, config.positions
    return (
        isinstance(config.adapter, Pixels)
        and config.adapter.num_channels is None
        and isinstance(positions, FourierConfig)
        and len(set(config.max_resolution)) == 1
        and encoder.cross_attend_layout == "interleaved"
        and self_attends_per_cross_attend(encoder) is not None
    )


def self_attends_per_cross_attend(encoder: EncoderConfig) -> int | None:
    """How many self-attends follow each cross-attend; None if not every one has as many."""
    count, rest = divmod(encoder.num_blocks * encoder.num_self_attends, encoder.num_cross_attends)
    return None if rest else count


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
