"""One task of preprocessing: read a shard's files, decode them, write the shard whole.

Runs in Ray's workers, so it imports neither torch nor Ray.
"""

import hashlib
import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from pipeline.listing import read_plan
from pipeline.media import ImageFormat, MediaError, MediaFormat, decode
from pipeline.media.images import encode_jpeg
from shards import (
    Quarantined,
    Sample,
    ShardError,
    decode_npy,
    encode_npy,
    read_committed,
    write_shard,
)

MAX_FILE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class ShardTask:
    """Makes the shards whose numbers come in a batch; for ``Dataset.map_batches``.

    Attributes:
        plan: Parquet file whose row group N lists the files of shard N.
        staging: folder that takes the shards.
        media: what every file becomes.
        roots: each split's folder or URL.
    """

    plan: str
    staging: str
    media: MediaFormat
    roots: dict[str, str]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        counts = [self._write(int(number)) for number in batch["id"]]
        return {"files": np.asarray(counts)}

    def _write(self, number: int) -> int:
        rows = read_plan(Path(self.plan), number)
        staging = Path(self.staging)
        if read_committed(staging, number) is None:
            write_shard(staging, number, rows[0]["split"], self._samples(rows))
        return len(rows)

    def _samples(self, rows: list[dict[str, Any]]) -> Iterator[Sample | Quarantined]:
        for row in rows:
            uri = f"{row['split']}/{row['path']}"
            try:
                yield self._sample(row, uri)
            except (MediaError, ShardError, OSError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                yield Quarantined(uri, row["split"], reason, _trace(error))

    def _sample(self, row: dict[str, Any], uri: str) -> Sample:
        data = self._read(row)
        array = decode(data, self.media, name=row["path"])
        about = {"source": uri, "class": row["class_name"]}
        members = {
            self.media.member: _encode(array, self.media),
            "cls": str(row["target"]).encode(),
            "json": json.dumps(about).encode(),
        }
        # Keys must be unique and plain; paths are neither short nor free of dots.
        key = hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:24]
        return Sample(key, members, row["target"], uri, hashlib.sha256(data).hexdigest())

    def _read(self, row: dict[str, Any]) -> bytes:
        if row["size"] > MAX_FILE_BYTES:
            raise MediaError(f"{row['size']} bytes, more than {MAX_FILE_BYTES}")
        filesystem, base = fsspec.core.url_to_fs(self.roots[row["split"]])
        return filesystem.cat_file(f"{base.rstrip('/')}/{row['path']}")


def _trace(error: BaseException) -> str:
    """Where a decoder failed, without this machine's paths: the set's bytes must not have them."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    return "\n".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)


def _encode(array: np.ndarray, media: MediaFormat) -> bytes:
    if isinstance(media, ImageFormat) and media.encoding == "jpeg":
        return encode_jpeg(array, media.jpeg_quality)
    return encode_npy(array)


def read_member(members: dict[str, memoryview], media: MediaFormat) -> np.ndarray:
    """The array that :class:`ShardTask` put into a shard.

    Raises:
        MediaError: the member is damaged.
        ShardError: likewise.
    """
    content = members[media.member]
    if isinstance(media, ImageFormat) and media.encoding == "jpeg":
        return decode(bytes(content), media)
    return decode_npy(content)
