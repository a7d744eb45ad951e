"""Adapters: raw inputs to tokens; for each modality its input (`*_config`) and its modules."""
