"""Training with Ray Train and DeepSpeed: the verb, its workers, the loop and checkpoints."""
