"""The parts of the configuration that come from the registered modalities.

The fields are created when this module is imported, so a type checker does not see them. Code uses
`DataConfig.formats` and `ColumnsConfig.of` with the modality's name instead.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import create_model

from pipeline.config.base import ConfigBase
from pipeline.media.registered import MODALITIES, modality


class _Columns(ConfigBase):
    def of(self, name: str) -> str | None:
        """Return the column of a modality; None if there is none, or if it has several."""
        column: str | None = getattr(self, name, None)
        return column


def _with_fields(base: type[ConfigBase], name: str, fields: dict[str, Any]) -> Any:
    return create_model(name, __base__=base, **fields)


def with_media_sections(base: type[ConfigBase]) -> Any:
    """Return a section with the fields of `base` and one field for each modality's format."""
    fields = {name: (modality(name).format | None, None) for name in MODALITIES}
    return _with_fields(base, "MediaSections", fields)


if TYPE_CHECKING:
    ModalityName = str
    MediaColumns = _Columns
else:
    ModalityName = Literal[tuple(MODALITIES)]
    MediaColumns = _with_fields(
        _Columns,
        "MediaColumns",
        {name: (str | None, None) for name in MODALITIES if modality(name).source != "row"},
    )
