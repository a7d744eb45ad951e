"""Studies with Ray Tune: trials, successive halving, the journal and plots."""
