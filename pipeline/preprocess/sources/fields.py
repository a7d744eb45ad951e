"""Finds out by its name which field of a sample a file is."""

from collections.abc import Sequence

from pipeline.media.modality import words
from pipeline.media.registered import MODALITIES, modality

TARGET_FIELDS = ("mask", "target")
PART_FIELDS = (*MODALITIES, *TARGET_FIELDS)
FIELD_CODES = {field: code for code, field in enumerate(PART_FIELDS)}
# Codes of members that are not files of a sample: ignored ones, `.json` with a label, and `.cls`. A
# label of the last kind wins.
OTHER, JSON_LABEL, CLASS_LABEL = range(len(PART_FIELDS), len(PART_FIELDS) + 3)


EXTENSIONS: dict[str, frozenset[str]] = {
    **{name: modality(name).extensions for name in MODALITIES},
    "mask": words("bmp gif pgm png tif tiff"),
    "target": words("json txt"),
}


def target_field(kind: str) -> str | None:
    """Return the field of the file that holds a target of this kind; None if no file does."""
    if kind == "mask":
        return "mask"
    return "target" if kind in ("multi_label", "regression", "tokens") else None


class FieldNames:
    """Finds a file's field, and the name that all files of its sample share.

    `NAME.FIELD.EXT` (such as `0001.mask.png`) names the field. Otherwise the extension decides: it
    belongs to the first modality that has it. A target's own `.json` needs no field in its name,
    nor does its `.txt` if `text` is not a modality.

    Args:
        modalities: The modalities in order.
        target: The field of the target's file, or None.
    """

    def __init__(self, modalities: Sequence[str], target: str | None) -> None:
        self._fields = [*modalities, *([target] if target else [])]
        self._by_extension: dict[str, int] = {}
        for field in self._fields:
            if field != "mask":
                for extension in EXTENSIONS[field]:
                    self._by_extension.setdefault(extension, FIELD_CODES[field])

    def of(self, extensions: bytes) -> tuple[int, int]:
        """Return the field by the extensions of a file.

        Args:
            extensions: The part of the name after its first dot, or its last two extensions.

        Returns:
            The code of the field (`OTHER` if there is none), and the number of extensions that name
            it.
        """
        *before, extension = extensions.decode("latin-1").lower().split(".")
        if before and before[-1] in self._fields:
            field = before[-1]
            return (FIELD_CODES[field] if extension in EXTENSIONS[field] else OTHER), 2
        return self._by_extension.get(extension, OTHER), 1

    def split(self, name: bytes) -> tuple[bytes, int]:
        """Split a file's name into its stem and the code of its field."""
        stem, dot, extension = name.rpartition(b".")
        if not dot or not stem:
            return name, OTHER
        longer, dot, marker = stem.rpartition(b".")
        if dot and longer:
            code, used = self.of(marker + b"." + extension)
            return (longer if used == 2 else stem), code
        return stem, self.of(extension)[0]
