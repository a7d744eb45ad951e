"""The registered model: all that travels with it beside the media and the inputs."""
