"""The registered model: the code that it carries besides the media and the inputs."""
