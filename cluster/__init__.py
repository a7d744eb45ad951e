"""Machines: Ray sessions, Ray jobs, and DeepSpeed engines that are inspected and checked.

This package knows nothing about Perceivers. Importing it imports neither Ray nor DeepSpeed.
"""

from cluster.errors import ClusterError

__all__ = ["ClusterError"]
