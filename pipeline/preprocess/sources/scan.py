"""What was found in one source of a configuration, before samples are put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.preprocess.sources.grouping import SampleRequirement
from pipeline.preprocess.sources.stored_tables import StoredTable

if TYPE_CHECKING:
    from pipeline.preprocess.sources.values import InlineValues


@dataclass(frozen=True)
class SourceScan:
    """What was found in one source.

    Attributes:
        tables: The samples, of `FOUND_SCHEMA`, or members of samples, of `MEMBER_SCHEMA`.
        refused: The refused sources, of `REFUSED_SCHEMA`; their `uri` does not begin with the
            split.
        root: The folder or URL that the parts' paths lie below, with what gives access to it.
        wanted: What a sample must have, if `tables` are members; else None.
        is_listing: Whether these are rows of a listing, of which some may repeat a name.
        nothing: The error if no sample is left.
        values: The listing whose rows hold values, or None.
        label_names: For `multi_label`, the labels that occur in each split.
        numbered: Whether labels that are all numbers are sorted as numbers. False for folder names.
        confined: Whether only files below the root may be read, because the sources themselves name
            the paths.
    """

    tables: Sequence[StoredTable]
    refused: pa.Table
    root: str
    wanted: SampleRequirement | None = None
    is_listing: bool = False
    nothing: str | None = None
    values: "InlineValues | None" = None
    label_names: dict[str, set[str]] = field(default_factory=dict)
    numbered: bool = True
    confined: bool = True
