"""The MLflow model registry: judge, promote and roll back models, and predict with them."""
