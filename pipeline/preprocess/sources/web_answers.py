"""Answers of web servers, read with a limit."""

from typing import Any

import aiohttp

MAX_ANSWER_BYTES = 64 << 20
"""The most bytes of an answer. Every request for a range of a file or for a folder's page asks for
less.
"""

_CHUNK_BYTES = 1 << 16


class BoundedResponse(aiohttp.ClientResponse):
    """An answer that can be read as a whole only up to a limit."""

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            OSError: It has more than `MAX_ANSWER_BYTES`.
        """
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
    """Return a session that limits all its answers; for fsspec's `get_client`."""
    return aiohttp.ClientSession(response_class=BoundedResponse, **options)
