"""`perceiver bench`: our figures beside the peers', on this machine, in one run."""
