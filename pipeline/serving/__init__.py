"""A registered model behind an HTTP endpoint, by Ray Serve."""
