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
    plan           which samples make which shard
"""

from pipeline.sources.listing import Listing, list_sources
from pipeline.sources.plan import (
    Part,
    SourceRow,
    part_file,
    plan_files,
    read_plan,
    write_plan,
)
from pipeline.sources.values import iter_values, read_values

__all__ = [
    "Listing",
    "Part",
    "SourceRow",
    "iter_values",
    "list_sources",
    "part_file",
    "plan_files",
    "read_plan",
    "read_values",
    "write_plan",
]
