"""Shard sets: samples of any modality on disk, reproducible to the byte.

    shard-00000.tar ...     plain WebDataset: KEY.image.npy, KEY.cls, ...
    index/00000.parquet     one row per sample: key, target, offsets of its members in the tar
    positions/DIGEST.npy    position tables, one for each grid
    quarantine.parquet      the sources that gave no sample, and the reasons
    shards.parquet          one row per shard: samples, bytes, sha256 of the tar and of the index
    manifest.json           describes the set; it is written last, and its sha256 names the set

To write a set, call `write_shard` for each shard of a plan in a staging folder, then `publish`.
To read a set, use `ShardSet.open`, `ShardReader` and `epoch_positions`. To read it as tensors, use
`shards.loader.ShardLoader`; of these, only the loader imports torch. This package knows nothing
about images or audio: a member of a sample is bytes.
"""

from shards.epoch import PADDING, epoch_positions, num_steps
from shards.errors import ShardError
from shards.index import ShardInfo
from shards.manifest import Manifest
from shards.npy import decode_npy, encode_npy
from shards.order import Permutation, epoch_key
from shards.positions import PositionSpec, read_position_table, write_position_table
from shards.publish import publish, recover
from shards.quarantine import (
    Quarantined,
    quarantine_table,
    read_quarantine,
    read_quarantine_table,
    write_quarantine,
)
from shards.reader import RawSample, ShardReader
from shards.remote_tars import RemoteReading
from shards.rewrite import link_shard, rewrite_shard
from shards.sample import Sample
from shards.shard_set import ShardSet
from shards.verify import Problem, verify
from shards.writer import read_committed, write_shard

__all__ = [
    "PADDING",
    "Manifest",
    "Permutation",
    "PositionSpec",
    "Problem",
    "Quarantined",
    "RawSample",
    "RemoteReading",
    "Sample",
    "ShardError",
    "ShardInfo",
    "ShardReader",
    "ShardSet",
    "decode_npy",
    "encode_npy",
    "epoch_key",
    "epoch_positions",
    "link_shard",
    "num_steps",
    "publish",
    "quarantine_table",
    "read_committed",
    "read_position_table",
    "read_quarantine",
    "read_quarantine_table",
    "recover",
    "rewrite_shard",
    "verify",
    "write_position_table",
    "write_quarantine",
    "write_shard",
]
