"""What trainings and evaluations report beside metrics: details by class, and pictures."""
