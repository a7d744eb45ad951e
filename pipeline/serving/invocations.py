"""A request to `/invocations`: MLflow's own code reads and answers it, and a refusal is one line.

What a client is told never holds its request again, a path, or a trace of an error.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR, ErrorCode
from mlflow.pyfunc.scoring_server import CONTENT_TYPE_JSON, invocations
from starlette.responses import Response

from pipeline.registry.served.params import read_params
from pipeline.registry.served.request_error import RequestError
from pipeline.serving.limits import refusal
from pipeline.training.objectives import Objective
from shards.redaction import shortened

FAILED = "the server failed; its log says why"
_LONGEST = 400
_log = logging.getLogger("ray.serve")  # Ray writes it to the log of the deployment.


class AskedModel:
    """A registered model, as MLflow's code asks it.

    Args:
        loaded: The model, as `mlflow.pyfunc.load_model` gives it.
        objective: What the model is trained for.
    """

    def __init__(self, loaded: Any, objective: Objective) -> None:
        self.metadata, self._loaded, self._objective = loaded.metadata, loaded, objective

    def predict(self, data: Any, params: Any = None) -> Any:
        """Predict what MLflow's code has read.

        Raises:
            RequestError: The input or the parameters cannot be used, or the model failed.
        """
        try:
            read_params(self._objective, params)
        except ValueError as error:
            raise RequestError(shortened(str(error), _LONGEST)) from None
        try:
            return self._loaded.predict(data, params=params)
        except RequestError:
            raise
        except MlflowException as error:
            raise RequestError(_line_of(error), ErrorCode.Value(error.error_code)) from None
        except Exception:  # whatever a model raises
            _log.exception("the model failed")
            raise RequestError(FAILED, INTERNAL_ERROR) from None

    def respond(self, body: bytes, content_type: str) -> Response:
        """Return the response to a request."""
        try:
            is_json = content_type.partition(";")[0].strip() == CONTENT_TYPE_JSON
            data = _read_json(body) if is_json else body
            made = invocations(data, content_type, self, self.metadata.get_input_schema())
        except RecursionError:
            return refusal(400, "BAD_REQUEST", "the JSON is nested too deep")
        except MlflowException as error:
            return refusal(error.get_http_status_code(), error.error_code, _line_of(error))
        if made.status != 200:
            return refusal(made.status, "BAD_REQUEST", shortened(made.response, _LONGEST))
        return Response(made.response, media_type=made.mimetype)


def _read_json(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as error:
        line = shortened(f"the body is no JSON: {error}", _LONGEST)
        raise RequestError(line, BAD_REQUEST) from None
    if not isinstance(found, dict):
        raise RequestError('the body is no JSON object; give {"inputs": [...]}', BAD_REQUEST)
    return found


def _line_of(error: MlflowException) -> str:
    """Return what MLflow says, without the request that it repeats before its reason."""
    said = error.message
    if error.error_class == "SCHEMA_ENFORCEMENT_FAILED":
        said = f"the input does not fit the model: {said.rpartition('Error: ')[2]}"
    return shortened(said, _LONGEST)
