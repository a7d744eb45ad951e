"""Turn media into what a model reads: batches, collation and position tables."""
