"""`perceiver bench`: measure our code and its peers on this machine, in one run."""
