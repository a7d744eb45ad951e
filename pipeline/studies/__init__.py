"""Studies: questions about Perceivers, answered by trainings from several seeds."""
