"""Adapters turn raw inputs into tokens. Each modality has its configuration in `*_config`."""
