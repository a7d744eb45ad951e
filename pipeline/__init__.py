"""perceiver-pipeline: raw media in, a registered Perceiver out.

Each package is a room of the house, and imports only from those below it:

    cli         the command line, and Ray jobs
    demo        the demo
    registry    promote, predict, the registered model
    tuning      studies
    training    the training verb, its workers and its loop
    preprocess  raw media to shards
    runs        MLflow runs, records of what verbs did, the console
    config      the configuration
    inputs      decoded media to what a model reads
    media       raw media to arrays

Importing this package imports none of Ray, torch or MLflow.
"""

__version__ = "0.1.0"
