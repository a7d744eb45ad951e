"""Which field of a sample a file is, by its name."""

from collections.abc import Sequence

from pipeline.media.modality import words
from pipeline.media.registered import MODALITIES, modality

TARGET_FIELDS = ("mask", "target")
PART_FIELDS = (*MODALITIES, *TARGET_FIELDS)
FIELD_CODES = {field: code for code, field in enumerate(PART_FIELDS)}
# What a tar says of a sample besides its parts; the last one given is its label.
OTHER, JSON_LABEL, CLASS_LABEL = range(len(PART_FIELDS), len(PART_FIELDS) + 3)


EXTENSIONS: dict[str, frozenset[str]] = {
    **{name: modality(name).extensions for name in MODALITIES},
    "mask": words("bmp gif pgm png tif tiff"),
    "target": words("json txt"),
}


def target_field(kind: str) -> str | None:
    """The field of the file that holds a target of this kind, None where no file does."""
    if kind == "mask":
        return "mask"
    return "target" if kind in ("multi_label", "regression", "tokens") else None


class FieldNames:
    """Tells a file's field and the name that its sample's files share.

    `NAME.FIELD.EXT` (`0001.mask.png`) says the field; otherwise the extension does, and belongs
    to the first of the modalities that knows it. A target's own `.json` and, where `text` is
    no modality, `.txt` need no field in their names.

    Args:
        modalities: in order.
        target: the field of the target's file, or None.
    """

    def __init__(self, modalities: Sequence[str], target: str | None) -> None:
        self._fields = [*modalities, *([target] if target else [])]
        self._by_extension: dict[str, int] = {}
        for field in self._fields:
            if field != "mask":
                for extension in EXTENSIONS[field]:
                    self._by_extension.setdefault(extension, FIELD_CODES[field])

    def of(self, extensions: bytes) -> tuple[int, int]:
        """The field of what follows a name's first dot, or its last two.

        Returns:
            The field's code (`OTHER` where it is none), and how many extensions say so.
        """
        *before, extension = extensions.decode("latin-1").lower().split(".")
        if before and before[-1] in self._fields:
            field = before[-1]
            return (FIELD_CODES[field] if extension in EXTENSIONS[field] else OTHER), 2
        return self._by_extension.get(extension, OTHER), 1

    def split(self, name: bytes) -> tuple[bytes, int]:
        """A file's name as its stem and its field's code."""
        stem, dot, extension = name.rpartition(b".")
        if not dot or not stem:
            return name, OTHER
        longer, dot, marker = stem.rpartition(b".")
        if dot and longer:
            code, used = self.of(marker + b"." + extension)
            return (longer if used == 2 else stem), code
        return stem, self.of(extension)[0]
