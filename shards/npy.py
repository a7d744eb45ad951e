"""Arrays to and from .npy bytes, without pickle. Decoding does not copy the array."""

import io
import math
from functools import lru_cache

import numpy as np
from numpy.lib import format as npy_format

from shards.errors import ShardError

_PREFIX_BYTES = 10
"""Magic string (6), version (2) and header length (2, little-endian) of .npy version 1.0."""

_MAX_SIZE = 1 << 62
"""The largest size of an axis."""


def encode_npy(array: np.ndarray) -> bytes:
    """Encode an array as a .npy file of version 1.0 in C order.

    Args:
        array: An array of any shape and any dtype but object.

    Raises:
        ShardError: The array has dtype object, which needs pickle.
    """
    if array.dtype.hasobject:
        raise ShardError(f"an array of dtype {array.dtype} needs pickle; convert it to numbers")
    return _header(array.dtype, array.shape) + array.tobytes()


@lru_cache(maxsize=256)
def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    fields = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, fields)
    return file.getvalue()


def decode_npy(data: bytes | memoryview) -> np.ndarray:
    """Decode a .npy file of version 1.0.

    Returns:
        A view of `data`, which is read-only if `data` is.

    Raises:
        ShardError: The data is not a .npy file, the array has dtype object, or the payload is
            shorter or longer than the header declares.
    """
    header_end = _PREFIX_BYTES + int.from_bytes(data[8:_PREFIX_BYTES], "little")
    dtype, fortran_order, shape = _parse_header(bytes(data[:header_end]))
    count = math.prod(shape)
    if len(data) - header_end != count * dtype.itemsize:
        raise ShardError(
            f"damaged .npy: {len(data) - header_end} bytes follow the header of a {dtype} array of "
            f"shape {str(shape)[:100]}, which has another size; write the sample again"
        )
    try:
        flat: np.ndarray = np.ndarray((count,), dtype, buffer=data, offset=header_end)
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except (ValueError, OverflowError, MemoryError) as error:  # numpy's limits on sizes
        raise ShardError(
            f"damaged .npy: no array has the shape {str(shape)[:100]}; write the sample again"
        ) from error


@lru_cache(maxsize=256)  # a set has few distinct headers, and to parse one is slower than a read
def _parse_header(header: bytes) -> tuple[np.dtype, bool, tuple[int, ...]]:
    file = io.BytesIO(header)
    try:
        version = npy_format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
    except Exception as error:  # numpy's header parser raises several kinds of errors
        reason = " ".join(str(error).split())[:200]
        raise ShardError(
            f"not a .npy file of version 1.0 ({reason}); write the sample again"
        ) from error
    if any(not 0 <= size <= _MAX_SIZE for size in shape):
        raise ShardError("refused .npy: its shape is negative or huge; write the sample again")
    if dtype.hasobject or dtype.itemsize == 0:
        raise ShardError(f"refused .npy: dtype {dtype}, shape {shape}; write the sample as numbers")
    return dtype, fortran_order, shape
