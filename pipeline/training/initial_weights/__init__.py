"""Start from weights (`model.init`): where they come from, which fit, and which are trained."""
