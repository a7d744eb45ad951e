"""The machines: Ray sessions, Ray jobs, and DeepSpeed engines read and checked.

Knows nothing of Perceivers. Importing this package imports neither Ray nor DeepSpeed.
"""

from cluster.errors import ClusterError

__all__ = ["ClusterError"]
