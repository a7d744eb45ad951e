"""What the arms of studies do other than to train and test: one module each."""
