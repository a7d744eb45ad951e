"""What the configuration takes from the registered modalities: sections, columns and names.

The fields are made when this module is imported. For a type checker they are not there; code asks
`DataConfig.formats` and `ColumnsConfig.of` instead, by the modality's name.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import create_model

from pipeline.config.base import ConfigBase
from pipeline.media.registered import MODALITIES, modality


class _Columns(ConfigBase):
    def of(self, name: str) -> str | None:
        """The column of a modality; None where none is named, or it has columns of its own."""
        column: str | None = getattr(self, name, None)
        return column


def _with_fields(base: type[ConfigBase], name: str, fields: dict[str, Any]) -> Any:
    return create_model(name, __base__=base, **fields)


def with_media_sections(base: type[ConfigBase]) -> Any:
    """A section with the fields of `base`, and one for the format of each modality."""
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
