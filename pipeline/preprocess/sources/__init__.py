"""Lists the sources, and gives each its split, target and shard.

A source is what one sample is made of: a file, several files of one name, members of a tar, or a
row of a listing. Sources always live in Arrow tables, so the driver does not hold a Python object
for each of a million files.

    walk           the files below a folder or URL
    folders        turns files into samples: one each, or one for all files of a name
    tar_members    the members of a tar and their offsets
    tars           turns members of one key into samples
    columns, typed, rows  a listing's rows, as typed columns
    listing_files  turns rows into samples
    split          holds samples out, and orders all
    listing        all of this, by configuration: the source table
    reach          what a source may name
    parts, local_files, web  the files of a sample, and reading them
    plan           which samples make which shard
    values         values that lie in rows
    vocabulary     statistics of a table's training rows
"""

from pipeline.preprocess.sources.listing import list_sources
from pipeline.preprocess.sources.parts import SourceFile, part_file, read_part
from pipeline.preprocess.sources.plan import (
    SourceRow,
    plan_files,
    read_plan,
    shard_addresses,
    write_plan,
)
from pipeline.preprocess.sources.reach import Reach
from pipeline.preprocess.sources.source_table import SourceChunk, SourceTable
from pipeline.preprocess.sources.stored_tables import StoredTable, TableStore
from pipeline.preprocess.sources.vocabulary import fit_rows

__all__ = [
    "Reach",
    "SourceChunk",
    "SourceFile",
    "SourceRow",
    "SourceTable",
    "StoredTable",
    "TableStore",
    "fit_rows",
    "list_sources",
    "part_file",
    "plan_files",
    "read_part",
    "read_plan",
    "shard_addresses",
    "write_plan",
]
