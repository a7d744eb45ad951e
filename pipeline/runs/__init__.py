"""What every verb shares: MLflow runs, records of work done, the console."""
