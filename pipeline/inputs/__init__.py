"""Media into what a model reads: batches, collate, positions."""
