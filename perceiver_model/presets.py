"""Configurations with published results (paper, section 4.1 and appendix A), by name."""

import dataclasses
import difflib

from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.config import EncoderConfig, FourierConfig
from perceiver_model.inputs import ImageInput, Pixels

_IMAGENET = ClassifierConfig(
    input=ImageInput(height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    adapter=Pixels(),
    positions=FourierConfig(num_bands=64, max_resolution=(224, 224)),
    encoder=EncoderConfig(),
    num_classes=1000,
)


def _imagenet(encoder: EncoderConfig) -> ClassifierConfig:
    return dataclasses.replace(_IMAGENET, encoder=encoder)


PRESETS: dict[str, ClassifierConfig] = {
    # 44.9 M parameters, 707.2 GFLOP per image, 78.0 % top-1.
    "imagenet": _IMAGENET,
    # 42.1 M parameters, 404.3 GFLOP per image, 76.7 %.
    "imagenet-one-cross-attend": _imagenet(EncoderConfig(num_cross_attends=1)),
    # All cross-attends before the first block: 73.7 %.
    "imagenet-cross-attends-first": _imagenet(EncoderConfig(cross_attend_layout="first")),
    # No weight sharing: 326.2 M parameters, 72.9 % on validation, 87.7 % on training images.
    "imagenet-unshared": _imagenet(
        EncoderConfig(share_cross_attends="none", share_self_attends=False)
    ),
}


def preset(name: str) -> ClassifierConfig:
    """The named configuration; raises ValueError with the nearest and all known names."""
    if name in PRESETS:
        return PRESETS[name]
    nearest = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"no preset {name!r}: {hint}known presets: {', '.join(PRESETS)}")
