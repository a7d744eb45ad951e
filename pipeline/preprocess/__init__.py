"""Raw media to a shard set with Ray Data: the verb, its tasks, the ledger and the quarantine."""
