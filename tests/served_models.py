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

from pipeline.media.table.modality import VOCABULARY
from pipeline.registry.package import package
from pipeline.registry.served.inference import ModelCard
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.multi_label import MultiLabel

KINDS = ("image", *FORMATS)


def card_of(kind: str, folder: Path) -> ModelCard:
    """A classifier of a kind of media; `labels` is one of images that has labels."""
    if kind == "image":
        return image_card()
    if kind == "labels":
        card = image_card()
        return ModelCard(MultiLabel(card.objective.model_config, ("a", "b", "c")), card.media)
    made_with = {VOCABULARY: TABLE.vocabulary.to_dict()}
    classifier = make_config(kind, folder).classifier(2, made_with)
    return ModelCard(Classification(classifier, ("zero", "one")), FORMATS[kind])


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
