"""`perceiver plan`: what a training takes, before a machine is rented."""
