"""Answers of web servers, none of which is read without a bound."""

from typing import Any

import aiohttp

MAX_ANSWER_BYTES = 64 << 20
"""Of a range of a listing or tar, or of a folder's page: more than is ever asked for at once."""

_CHUNK_BYTES = 1 << 16


class BoundedResponse(aiohttp.ClientResponse):
    """An answer that is read as a whole only while it is of a bounded size."""

    async def read(self) -> bytes:
        """The body. Raises OSError: it has more than `MAX_ANSWER_BYTES`."""
        if self._body is not None:
            return bytes(self._body)
        data = bytearray()
        async for chunk in self.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                self.close()
                raise OSError(f"the server sends more than {MAX_ANSWER_BYTES} bytes at once")
        self._body = bytes(data)
        return self._body


async def bounded_client(**options: Any) -> aiohttp.ClientSession:
    """A session all of whose answers are bounded; for fsspec's `get_client`."""
    return aiohttp.ClientSession(response_class=BoundedResponse, **options)
