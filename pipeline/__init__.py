"""perceiver-pipeline: raw media in, a registered Perceiver out.

The verbs live in one module each (:mod:`pipeline.preprocess`, :mod:`pipeline.train`,
:mod:`pipeline.tune`, :mod:`pipeline.promote`, :mod:`pipeline.predict`); ``perceiver --help`` lists
them. Importing this package imports none of Ray, torch or MLflow.
"""

__version__ = "0.1.0"
