"""Perceiver IO on text: masked language modelling and classification.

transformers' decoder in `PerceiverForMaskedLM` always decodes every position of the longest text.
The model here decodes as many positions as its input has, with the same logits.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from perceiver_model.adapters.configs import TextInput, TokenEmbeddingConfig
from perceiver_model.config import DecoderConfig
from perceiver_model.deepmind.architecture import Architecture
from perceiver_model.deepmind.layers import (
    DECODER,
    PREPROCESSOR,
    TensorMap,
    decoder_map,
    encoder_map,
    head_map,
    tensor_map,
)
from perceiver_model.deepmind.settings import (
    Fidelity,
    label_settings,
    num_classes,
    read_encoder,
    read_gelu,
    setting,
    write_encoder,
)
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.language import MaskedLanguageModel
from perceiver_model.families.language_config import LanguageConfig


def embedding_map() -> list[TensorMap]:
    """Map a `TokenAdapter`: the embeddings of tokens and positions."""
    return [
        *tensor_map("adapter.embedding.weight", f"{PREPROCESSOR}.embeddings.weight"),
        *tensor_map("adapter.positions", f"{PREPROCESSOR}.position_embeddings.weight"),
    ]


def _read_text(
    settings: Mapping[str, Any], image_size: tuple[int, int] | None
) -> tuple[TextInput, TokenEmbeddingConfig]:
    if image_size is not None:
        raise ValueError(f"image_size is {image_size}; must be None for a model of text")
    text = TextInput(
        max_length=setting(settings, "max_position_embeddings"),
        vocab_size=setting(settings, "vocab_size"),
    )
    return text, TokenEmbeddingConfig(num_channels=setting(settings, "d_model"))


def _write_text(text: TextInput) -> dict[str, Any]:
    return {"max_position_embeddings": text.max_length, "vocab_size": text.vocab_size}


class MaskedLanguage(Architecture[LanguageConfig]):
    """The class `PerceiverForMaskedLM`."""

    name = "PerceiverForMaskedLM"
    model = MaskedLanguageModel

    def recognises(self, names: Collection[str]) -> bool:
        return "embedding_decoder.bias" in names

    def fits(self, config: object) -> bool:
        return isinstance(config, LanguageConfig)

    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> LanguageConfig:
        text, embedding = _read_text(settings, image_size)
        return LanguageConfig(
            input=text,
            adapter=embedding,
            encoder=read_encoder(settings, fidelity),
            decoder=DecoderConfig(
                num_heads=8,
                qk_channels=256,
                value_channels=embedding.num_channels,
                query_residual=False,
                gelu=read_gelu(settings, fidelity),
            ),
        )

    def write_settings(self, config: LanguageConfig) -> dict[str, Any]:
        return write_encoder(config.encoder, config.input_channels) | _write_text(config.input)

    def tensors(self, config: LanguageConfig) -> list[TensorMap]:
        queries = "perceiver.decoder.output_position_encodings.position_embeddings"
        return [
            *embedding_map(),
            *encoder_map(config.encoder),
            *tensor_map("queries", queries),
            *decoder_map("decoder", "perceiver.decoder", output=False),
            *tensor_map("bias", "embedding_decoder.bias"),
        ]


class TextClassifier(Architecture[ClassifierConfig]):
    """The class `PerceiverForSequenceClassification`."""

    name = "PerceiverForSequenceClassification"
    model = PerceiverClassifier

    def recognises(self, names: Collection[str]) -> bool:
        theirs = {name for name in names if name.startswith(PREPROCESSOR)}
        own = {name for entry in embedding_map() for name in entry.theirs}
        return own == theirs and "embedding_decoder.bias" not in names

    def fits(self, config: object) -> bool:
        return (
            isinstance(config, ClassifierConfig)
            and isinstance(config.input, TextInput)
            and config.decoder is not None
        )

    def read_config(
        self,
        settings: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        *,
        fidelity: Fidelity,
        image_size: tuple[int, int] | None,
    ) -> ClassifierConfig:
        text, embedding = _read_text(settings, image_size)
        return ClassifierConfig(
            input=text,
            adapter=embedding,
            positions=None,
            encoder=read_encoder(settings, fidelity),
            decoder=DecoderConfig(gelu=read_gelu(settings, fidelity)),
            num_classes=num_classes(settings, state_dict, f"{DECODER}.final_layer"),
        )

    def write_settings(self, config: ClassifierConfig) -> dict[str, Any]:
        assert isinstance(config.input, TextInput), "fits() was asked first"
        return (
            write_encoder(config.encoder, config.input_channels)
            | _write_text(config.input)
            | label_settings(config.num_classes)
        )

    def tensors(self, config: ClassifierConfig) -> list[TensorMap]:
        return [*embedding_map(), *encoder_map(config.encoder), *head_map()]
