"""Which sources there are, and the split, target and shard of each.

A source is what one sample is made of: a file, several files of one name, members of a tar, or a
row of a listing. Sources live in Arrow tables throughout: the driver holds no Python object for
each of a million files.

    walk           files below a folder or URL
    folders        files to samples: each by itself, or those of one name together
    tar_members    what a tar holds, and where
    tars           members of one key to samples
    columns, typed, rows  a listing's rows, as typed columns
    listing_files  rows to samples
    split          held-out samples, and the order of all
    listing        all of it, by configuration
    reach          what a source may name
    parts, local_files, web  the files of a sample, and reading them
    plan           which samples make which shard
    values         values that lie in rows
    vocabulary     what the training rows of a table tell
"""

from pipeline.preprocess.sources.listing import SourceTable, list_sources
from pipeline.preprocess.sources.parts import SourceFile, part_file, read_part
from pipeline.preprocess.sources.plan import (
    SourceRow,
    plan_files,
    read_plan,
    shard_addresses,
    write_plan,
)
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.vocabulary import fit_table

__all__ = [
    "Reach",
    "SourceFile",
    "SourceRow",
    "SourceTable",
    "fit_table",
    "list_sources",
    "part_file",
    "plan_files",
    "read_part",
    "read_plan",
    "shard_addresses",
    "write_plan",
]
