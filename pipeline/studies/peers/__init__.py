"""The models that a study trains beside the Perceiver, in plain torch."""
