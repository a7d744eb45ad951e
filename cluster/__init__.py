"""Machines: Ray sessions, Ray jobs, and DeepSpeed engines that are inspected and checked.

This package knows nothing about Perceivers. Importing it imports neither Ray nor DeepSpeed.
"""

import logging

from cluster.errors import ClusterError

__all__ = ["ClusterError"]


def _says_more_than_we_do(record: logging.LogRecord) -> bool:
    """Return whether a line of DeepSpeed is news.

    On a machine without a GPU it says so wherever it is imported, on the standard output: before
    the resolved configuration, and before our own line on what is wrong. Whether a training gets
    GPUs is checked against `cluster.use_gpu`.
    """
    return record.filename != "real_accelerator.py"


logging.getLogger("DeepSpeed").addFilter(_says_more_than_we_do)
