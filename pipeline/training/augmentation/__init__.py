"""Random changes to training inputs, each a pure function of (seed, epoch, step)."""
