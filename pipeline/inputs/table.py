"""How a model reads rows of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perceiver_model.adapters.configs import TableInput
from pipeline.inputs.attention_view import View, no_view, parts
from pipeline.inputs.modality import ModalityInputs
from pipeline.media.table.decode import FittedTableFormat
from pipeline.media.table.format import TableFormat

if TYPE_CHECKING:
    import numpy as np
    import torch

    from perceiver_model.adapters.table import TableRows


class TableInputs(ModalityInputs[TableFormat]):
    """Rows as `perceiver_model.adapters.table.TableRows`, without a mask.

    Numbers are float64, with NaN where one is missing. Categories are int64, with -1 where one is
    missing.
    """

    def tensors(
        self, rows: torch.Tensor, lengths: torch.Tensor, fmt: TableFormat
    ) -> tuple[TableRows, None]:
        """Split rows into numbers and categories. In a row that a sample lacks, all are missing."""
        from perceiver_model.adapters.table import TableRows

        rows = rows.masked_fill(lengths[:, None] == 0, float("nan"))
        numeric, categorical = rows.split([len(fmt.numeric), len(fmt.categorical)], dim=1)
        return TableRows(numeric, categorical.nan_to_num(nan=-1.0).long()), None

    def input_config(
        self, fmt: TableFormat, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> TableInput:
        """Return a table input: with the statistics of a fitted format, else with placeholders."""
        if not isinstance(fmt, FittedTableFormat):
            return TableInput(
                num_numeric=len(fmt.numeric), num_categories=(1,) * len(fmt.categorical)
            )
        known = [fmt.vocabulary.categories[column] for column in fmt.categorical]
        return TableInput(
            num_numeric=len(fmt.numeric),
            mean=fmt.vocabulary.mean or (0.0,),
            std=fmt.vocabulary.std or (1.0,),
            # A column without any values gets two embeddings: one unused, one for unknown values.
            num_categories=tuple(max(1, len(names)) for names in known),
        )

    def attention_view(
        self, weights: np.ndarray, stored: torch.Tensor, inputs: Any, fmt: TableFormat
    ) -> View:
        """Return the most attended columns."""
        names = list(fmt.columns)
        if len(names) != weights.size:
            return no_view(f"{weights.size} tokens are not one for each of {len(names)} columns")
        return parts(zip(names, weights.ravel().tolist(), strict=True))
