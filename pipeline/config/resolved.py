"""The resolved configuration that is sent to other machines."""

from typing import Any

from pipeline.config.data import SPLITS, absolute
from pipeline.config.tree import Config


def resolved_tree(config: Config) -> dict[str, Any]:
    """Return the tree in the types of JSON, with absolute paths for every split's own source."""
    tree = config.tree()
    for split in SPLITS:
        if isinstance(address := getattr(config.data, split), str):
            tree["data"][split] = absolute(address)
    return tree
