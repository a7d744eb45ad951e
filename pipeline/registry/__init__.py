"""The MLflow model registry: judging, promoting and rolling back models, and predicting."""
