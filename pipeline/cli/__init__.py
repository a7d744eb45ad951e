"""The command line: verbs, their arguments, and Ray jobs."""
