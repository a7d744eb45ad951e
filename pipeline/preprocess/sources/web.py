"""Reads files from web servers, within the allowed size and only from the allowed servers."""

import functools
import os
from types import SimpleNamespace
from typing import Any

import aiohttp
import yarl
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from pipeline.media.errors import MediaError
from pipeline.preprocess.sources.local_files import check_size
from pipeline.preprocess.sources.reach import Reach

_CHUNK_BYTES = 1 << 16
_OK, _PARTIAL = 200, 206


def fetch(reach: Reach, url: str, offset: int | None, length: int | None) -> bytes:
    """Request an address once, and read no more than was asked for.

    Args:
        reach: What may be read, and how much of it.
        url: An address that may be read.
        offset: The offset of a range in bytes; None for the whole file.
        length: The length of a range in bytes; None for the whole file.

    Returns:
        The bytes. If the server sends more than the range, one byte more than the range is
        returned.

    Raises:
        FileNotFoundError: The server has no such file.
        MediaError: The file is too large, or the server redirects to an address that may not be
            read.
        Exception: aiohttp failed.
    """
    filesystem = _filesystem(reach, os.getpid())
    data: bytes = sync(filesystem.loop, _fetch, filesystem, reach, url, offset, length)
    return data


async def _fetch(
    filesystem: HTTPFileSystem, reach: Reach, url: str, offset: int | None, length: int | None
) -> bytes:
    headers = {}
    limit = reach.max_file_bytes
    if offset is not None and length is not None:
        headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        limit = length
        if not length:
            return b""
    session = await filesystem.set_session()
    async with session.get(yarl.URL(url), headers=headers) as response:
        if response.status == 404:
            raise FileNotFoundError(url)
        response.raise_for_status()
        if response.status not in (_OK, _PARTIAL):
            raise MediaError(f"the server answers {response.status}")
        if length is None:
            check_size(response.content_length or 0, limit)
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > limit:
                if length is None:
                    check_size(len(data), limit)
                return bytes(data[: limit + 1])
        return bytes(data)


@functools.lru_cache(maxsize=8)
def _filesystem(reach: Reach, process: int) -> HTTPFileSystem:
    """Return a file system of this process that asks `reach` about each redirect."""
    del process
    return HTTPFileSystem(get_client=functools.partial(_client, reach), skip_instance_cache=True)


async def _client(reach: Reach, **options: Any) -> aiohttp.ClientSession:
    async def sent_on(
        session: aiohttp.ClientSession,
        context: SimpleNamespace,
        about: aiohttp.TraceRequestRedirectParams,
    ) -> None:
        del session, context
        to = about.response.headers.get("Location") or about.response.headers.get("URI") or ""
        if reach.confined and not reach.holds_url(str(about.url.join(yarl.URL(to)))):
            raise MediaError("the server sends on to another place, which data.allow does not name")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(sent_on)
    return aiohttp.ClientSession(trace_configs=[trace], **options)
