"""Turn one source into the shard members of its samples: decode, cut and encode its files.

This runs in the sandbox's child process, so of the pipeline it imports only decoders.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.media.decode import (
    MediaFormat,
    decode,
    decode_all,
    encode_members,
    media_from_dict,
)
from pipeline.media.errors import MediaError
from pipeline.media.image.decode import ImageFormat
from pipeline.media.registered import modality, modality_of
from pipeline.media.sandbox.child import NamedBlob
from pipeline.media.targets import TargetConfig, target_members

FUNCTION = f"{__name__}:MemberMaker"


class MemberMaker:
    """Make the members of each sample of a source: one sample, or one per clip or context.

    At most one field is cut into several samples. All of them get the other fields and the target.

    Args:
        settings: `formats` (field to `media_to_dict`), `allow_missing` (fields), `target` (the
            fields of a `TargetConfig`), `classes`, and `strict`, as for `decode`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._formats = {name: media_from_dict(fmt) for name, fmt in settings["formats"].items()}
        self._allow_missing: list[str] = settings["allow_missing"]
        self._strict: bool = settings["strict"]
        self._target = TargetConfig(**settings["target"])
        self._classes = tuple(settings["classes"])
        image = self._formats.get("image")
        assert image is None or isinstance(image, ImageFormat)
        self._image = image

    def __call__(
        self, parts: dict[str, NamedBlob], values: dict[str, Any]
    ) -> Iterator[dict[str, bytes]]:
        """Yield the members of each of a source's samples, name to bytes.

        Args:
            parts: The files by field.
            values: The values of the source in the listing: rows by their field and column, and
                `target`, a class number or a value that `target_members` takes.

        Raises:
            MediaError: A file cannot be used, or a required file is missing.
        """
        fixed: dict[str, bytes] = {}
        cut = None
        for name, fmt in self._formats.items():
            if name in values:
                fixed |= encode_members(modality(name).encode_row(values[name], fmt), fmt)
            elif name not in parts:
                self._check_missing(name, parts)
            elif modality_of(fmt).cuts(fmt) or self._brought(name, parts):
                cut = name
            else:
                data, file = parts[name]
                fixed |= encode_members(decode(data, fmt, name=file, strict=self._strict), fmt)
        if cut is None and not fixed:
            raise MediaError("it has nothing of what the configuration asks for")
        fixed |= target_members(
            self._target, self._classes, values, parts, self._image, strict=self._strict
        )
        if cut is None:
            yield fixed
            return
        for pieces in self._pieces(cut, parts):
            yield fixed | pieces

    def _pieces(self, name: str, parts: dict[str, NamedBlob]) -> Iterator[dict[str, bytes]]:
        """Yield the members of each clip, with its sound if there is one, or of each context."""
        (data, file), fmt = parts[name], self._formats[name]
        brought = self._brought(name, parts)
        if not brought:
            for array in decode_all(data, fmt, name=file, strict=self._strict):
                yield encode_members(array, fmt)
            return
        required = brought.keys() - set(self._allow_missing)
        formats = {name: fmt, **brought}
        for arrays in modality_of(fmt).decode_with(
            data, fmt, brought, required=required, strict=self._strict
        ):
            members: dict[str, bytes] = {}
            for field, part in arrays.items():
                if part is not None:
                    members |= encode_members(part, formats[field])
            yield members

    def _brought(self, name: str, parts: dict[str, NamedBlob]) -> dict[str, MediaFormat]:
        """Return the formats of other modalities that come from this field's file."""
        brought = modality(name).brings - parts.keys()
        return {other: fmt for other, fmt in self._formats.items() if other in brought}

    def _check_missing(self, name: str, parts: dict[str, NamedBlob]) -> None:
        present = [other for other in self._formats if other in parts]
        is_brought = any(name in modality(other).brings for other in present)
        if not is_brought and name not in self._allow_missing:
            raise MediaError(f"it has no {name}, and data.allow_missing does not name that")
