"""Untrained models that are registered, as `perceiver promote` registers trained ones."""

import warnings
from pathlib import Path

import mlflow
from gate_runs import track
from modality_samples import make_config
from safetensors.torch import save_file
from test_inference import image_card, random_weights

from pipeline.registry.package import package
from pipeline.runs.mlflow_client import client


def owls(folder: Path) -> str:
    """Register a model of images as `owls` with the alias `champion`. Return the store's URI."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    store = client(uri)
    track(uri)
    experiment = mlflow.create_experiment("owls", artifact_location=(folder / "files").as_uri())
    card = image_card()
    save_file(random_weights(card), folder / "model.safetensors")
    weights = folder / "model.safetensors"
    data = make_config("text", folder).data
    with warnings.catch_warnings(action="ignore"), mlflow.start_run(experiment_id=experiment):
        mlflow.pyfunc.log_model(
            name="model", registered_model_name="owls", **package(card, folder, weights, data)
        )
    store.set_registered_model_alias("owls", "champion", "1")
    return uri
