"""Several verbs, one after the other, from raw media to a registered model."""

STAGES = ("preprocess", "tune", "train", "evaluate", "promote")
"""The stages of `perceiver run`, in order.

A configuration with a study has `tune`, and `train` only to train its best trial for more epochs.
"""
