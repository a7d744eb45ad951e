"""Turns raw media into a shard set with Ray Data: verb, tasks, ledger and quarantine."""
