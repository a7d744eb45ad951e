"""The format of a table's rows: configuration."""

from dataclasses import dataclass
from typing import ClassVar

from perceiver_model.config_checks import check_integers
from pipeline.media.format import MediaFormat


@dataclass(frozen=True, kw_only=True)
class TableFormat(MediaFormat):
    """Rows as vectors: the values of the numeric columns, then the indices of the categorical ones.

    Attributes:
        numeric: The names of the columns of numbers or booleans.
        categorical: The names of the columns of categories: text, integers or booleans.
        max_categories: How many of a column's most frequent values are known. All other values are
            one unknown category.
    """

    modality: ClassVar[str] = "table"

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    max_categories: int = 1000

    def __post_init__(self) -> None:
        check_integers(self, "max_categories", least=1)
        # Configurations that are read from JSON hold lists.
        for name in ("numeric", "categorical"):
            columns = getattr(self, name)
            if isinstance(columns, str) or not all(
                isinstance(column, str) and column for column in columns
            ):
                raise ValueError(f"{name} is {columns!r}; must be a list of columns' names")
            object.__setattr__(self, name, tuple(columns))
        if not self.columns:
            raise ValueError("numeric and categorical are empty; name at least one column")
        if repeated := sorted({c for c in self.columns if self.columns.count(c) > 1}):
            raise ValueError(f"column {repeated[0]!r} is named twice in numeric and categorical")

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, with the numeric ones first."""
        return self.numeric + self.categorical
