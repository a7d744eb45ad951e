"""What every verb shares: MLflow runs, records of finished work, and the console."""
