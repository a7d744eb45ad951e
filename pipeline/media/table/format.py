"""The format of a table's rows: configuration."""

from typing import ClassVar

from perceiver_model.config_checks import Count, Names, config_dataclass
from pipeline.media.format import MediaFormat


@config_dataclass
class TableFormat(MediaFormat):
    """Rows as vectors: the values of the numeric columns, then the indices of the categorical ones.

    Attributes:
        numeric: The names of the columns of numbers or booleans.
        categorical: The names of the columns of categories: text, integers or booleans.
        max_categories: How many of a column's most frequent values are known. All other values are
            one unknown category.
    """

    modality: ClassVar[str] = "table"

    numeric: Names = ()
    categorical: Names = ()
    max_categories: Count = 1000

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("numeric and categorical are empty; name at least one column")
        if repeated := sorted({c for c in self.columns if self.columns.count(c) > 1}):
            raise ValueError(f"column {repeated[0]!r} is named twice in numeric and categorical")

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, with the numeric ones first."""
        return self.numeric + self.categorical
