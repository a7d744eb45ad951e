"""An error in a request, as MLflow's servers send it to a client."""

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


class RequestError(MlflowException):
    """An error in a request, in one line.

    MLflow's server puts the whole request before an error's message. This class prevents that.
    """

    def __init__(self, line: str, code: int = INVALID_PARAMETER_VALUE) -> None:
        self._line = line
        super().__init__(line, error_code=code)

    @property
    def message(self) -> str:
        """The line."""
        return self._line

    @message.setter
    def message(self, _: str) -> None:
        pass
