"""Arrow columns as numpy arrays, and texts as Arrow values, without pandas.

pyarrow's `to_numpy`, `pa.array` and `pa.scalar` import pandas at their first use. That takes 0.2 s,
which would be most of the time to the first batch.
"""

import numpy as np
import pyarrow as pa


def as_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array. `combine_chunks` copies even a single chunk; this does not."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def as_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a column of integers or floats as an array, read-only and without a copy.

    Args:
        column: The numbers, none of them missing. Several chunks are copied into one.
    """
    array = as_array(column) if isinstance(column, pa.ChunkedArray) else column
    return np.from_dlpack(array)


def text_scalar(text: str) -> pa.Scalar:
    """Return a text as an Arrow string."""
    data = text.encode()
    offsets = np.array([0, len(data)], np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), 1, buffers)[0]
