"""All that one source gives to a shard: its files decoded, cut and encoded, sample by sample.

Runs in the sandbox's child process, so it imports decoders and nothing else of the pipeline.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.media.audio.decode import AudioFormat
from pipeline.media.decode import (
    MediaFormat,
    decode,
    decode_all,
    decode_film,
    encode_members,
    media_from_dict,
)
from pipeline.media.errors import MediaError
from pipeline.media.image.decode import ImageFormat
from pipeline.media.sandbox.child import NamedBlob
from pipeline.media.table.decode import FittedTableFormat
from pipeline.media.targets import TargetConfig, target_members
from pipeline.media.text import TextFormat
from pipeline.media.video.format import VideoFormat

FUNCTION = f"{__name__}:MemberMaker"


class MemberMaker:
    """Makes the members of each sample that a source gives: one, or one for each clip or context.

    At most one field is cut into several samples; all of them have the other fields and the target.

    Args:
        settings: `formats` (field → `media_to_dict`), `allow_missing` (fields), `target`
            (the fields of a `TargetConfig`), `classes` and `strict`, as of `decode`.
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
        """The members of each of a source's samples, name to bytes.

        Args:
            parts: the files, by field.
            values: what the listing has for the source: `table`, by column, and `target`, a
                class number or what `target_members` takes.

        Raises:
            MediaError: a file cannot be used, or one is missing that must be there.
        """
        fixed: dict[str, bytes] = {}
        cut = None
        for name, fmt in self._formats.items():
            if isinstance(fmt, FittedTableFormat) and "table" in values:
                fixed |= encode_members(fmt.encode_row(values["table"]), fmt)
            elif name not in parts:
                _check_missing(name, parts, self._allow_missing)
            elif _is_cut(fmt, self._formats, parts):
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
        """The members of each clip, with its sound where the film has it, or of each context."""
        (data, file), fmt = parts[name], self._formats[name]
        if not (isinstance(fmt, VideoFormat) and _reads_sound_track(self._formats, parts)):
            for array in decode_all(data, fmt, name=file, strict=self._strict):
                yield encode_members(array, fmt)
            return
        audio = self._formats["audio"]
        assert isinstance(audio, AudioFormat)
        needs_sound = "audio" not in self._allow_missing
        film = decode_film(data, fmt, audio, needs_sound=needs_sound, strict=self._strict)
        for frames, sound in film:
            heard = {} if sound is None else encode_members(sound, audio)
            yield encode_members(frames, fmt) | heard


def _check_missing(name: str, parts: dict[str, NamedBlob], allowed: list[str]) -> None:
    of_film = name == "audio" and "video" in parts
    if not of_film and name not in allowed:
        raise MediaError(f"it has no {name}, and data.allow_missing does not name that")


def _is_cut(fmt: MediaFormat, formats: dict[str, MediaFormat], parts: dict[str, NamedBlob]) -> bool:
    if isinstance(fmt, VideoFormat):
        return fmt.clips == "all" or _reads_sound_track(formats, parts)
    return isinstance(fmt, TextFormat) and fmt.cut == "all"


def _reads_sound_track(formats: dict[str, MediaFormat], parts: dict[str, NamedBlob]) -> bool:
    return "video" in formats and "audio" in formats and "audio" not in parts
