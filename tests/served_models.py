"""Untrained models, packed as the registry's are, and what MLflow's server does with requests."""

import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations
from modality_samples import FORMATS, TABLE, make_config
from safetensors.torch import save_file
from test_inference import image_card, random_weights
from test_objectives_text import masked_language

from perceiver_model.adapters.multimodal_config import Modality, MultimodalInput, PaddedModalities
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.media import TextFormat
from pipeline.media.table.modality import VOCABULARY
from pipeline.registry.package import package
from pipeline.registry.served.inference import ModelCard
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.multi_label import MultiLabel
from pipeline.training.objectives.regression import Regression
from pipeline.training.objectives.segmentation import Segmentation
from pipeline.training.objectives.sequence import TokenSequence

KINDS = ("image", *FORMATS)


def card_of(kind: str, folder: Path) -> ModelCard:
    """A classifier of a kind of media; `labels` is one of images that has labels."""
    if kind == "image":
        return image_card()
    if kind == "labels":
        card = image_card()
        return ModelCard(MultiLabel(card.objective.model_config, ("a", "b", "c")), card.media)
    if kind == "masked_language":
        return ModelCard(masked_language(), TextFormat(max_length=40))
    if kind == "segment":
        card = image_card()
        dense = DenseConfig(**_parts(card), output_channels=3)
        return ModelCard(Segmentation(dense, ("a", "b", "c")), card.media)
    if kind == "sequence":
        card = card_of("text", folder)
        queries = QueriesConfig(**_parts(card), num_queries=4, output_channels=262)
        return ModelCard(TokenSequence(queries, is_text=True), card.media)
    if kind == "regress":
        return numbers_of_several(folder)
    made_with = {VOCABULARY: TABLE.vocabulary.to_dict()}
    classifier = make_config(kind, folder).classifier(2, made_with)
    return ModelCard(Classification(classifier, ("zero", "one")), FORMATS[kind])


def numbers_of_several(folder: Path) -> ModelCard:
    """A regression of an image, a text and a row, of which a sample may lack some."""
    cards = {name: card_of(name, folder) for name in ("image", "text", "table")}
    parts = {name: _parts(card) for name, card in cards.items()}
    reads = {
        name: Modality(input=part["input"], adapter=part["adapter"], positions=part["positions"])
        for name, part in parts.items()
    }
    queries = QueriesConfig(
        input=MultimodalInput(modalities=reads),
        adapter=PaddedModalities(padding="learned"),
        positions=None,
        encoder=parts["image"]["encoder"],
        num_queries=2,
        output_channels=1,
    )
    media = {name: card.formats[name] for name, card in cards.items()}
    return ModelCard(Regression(queries, ("a", "b"), (10.0, -2.0), (4.0, 0.5)), media)


def _parts(card: ModelCard) -> dict[str, Any]:
    """What a model reads and how, as other models take it."""
    config = card.objective.model_config
    return {name: getattr(config, name) for name in ("input", "adapter", "positions", "encoder")}


def save_model(card: ModelCard, folder: Path, name: str) -> Path:
    """Save a model with random weights in a folder, and return its own folder."""
    weights, made = folder / f"{name}.safetensors", folder / f"{name}-made"
    save_file(random_weights(card), weights)
    made.mkdir()
    data = make_config("text", folder).data
    with warnings.catch_warnings(action="ignore"):
        mlflow.pyfunc.save_model(folder / name, **package(card, made, weights, data))
    return folder / name


def ask(model: Any, body: Any, kind: str = "application/json") -> tuple[int, Any]:
    """Status and answer of MLflow's server: what it does with a request, but for the socket."""
    data = body if isinstance(body, str | bytes) else json.dumps(body)
    try:
        answer = invocations(data, kind, model, model.metadata.get_input_schema())
    except MlflowException as error:
        return error.get_http_status_code(), json.loads(error.serialize_as_json())
    return answer.status, json.loads(answer.response)["predictions"]
