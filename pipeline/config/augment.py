"""Which fields of `training.augment` each modality takes, and the refusal of all others."""

from collections.abc import Mapping

from pipeline.config.training import AugmentConfig
from pipeline.media import (
    AudioFormat,
    ImageFormat,
    MediaFormat,
    PointsFormat,
    VideoFormat,
)

PICTURE_FIELDS = ("shift_pixels", "rotate_degrees", "scale", "flip", "crop_area")
POINTS_FIELDS = ("rotate_degrees", "scale", "jitter")
SOUND_FIELDS = ("shift_seconds", "gain_db")
MEL_FIELDS = ("shift_seconds", "mask_seconds", "mask_bands")


def fields_of(media: MediaFormat) -> tuple[str, ...]:
    """The fields that change media of a format. A gain of log-mel frames is standardised away."""
    match media:
        case ImageFormat() | VideoFormat():
            return PICTURE_FIELDS
        case PointsFormat():
            return POINTS_FIELDS
        case AudioFormat():
            return SOUND_FIELDS if media.mel is None else MEL_FIELDS
    return ()


def asked(augment: AugmentConfig, fields: tuple[str, ...] | None = None) -> list[str]:
    """The fields, of these or of all, that are to change something."""
    none = AugmentConfig()
    names = fields if fields is not None else tuple(AugmentConfig.model_fields)
    return [name for name in names if getattr(augment, name) != getattr(none, name)]


def check_augment(augment: AugmentConfig, formats: Mapping[str, MediaFormat]) -> None:
    """Refuse a field that would change nothing.

    Args:
        formats: the data's, by modality.

    Raises:
        ValueError: names the field, and what each modality takes.
    """
    taken = {name: fields_of(media) for name, media in formats.items()}
    for field in asked(augment):
        if not any(field in fields for fields in taken.values()):
            told = "; ".join(_told(formats[name], fields) for name, fields in taken.items())
            raise ValueError(f"training.augment.{field} changes none of the data: {told}")
    for media in formats.values():
        if isinstance(media, AudioFormat):
            _check_times(augment, media)
        if isinstance(media, ImageFormat | VideoFormat):
            _check_pixels(augment, media)


def _told(media: MediaFormat, fields: tuple[str, ...]) -> str:
    stored = " stored as mel" if isinstance(media, AudioFormat) and media.mel is not None else ""
    return f"{media.modality}{stored} takes {', '.join(fields) or 'no augmentation'}"


def _check_pixels(augment: AugmentConfig, media: ImageFormat | VideoFormat) -> None:
    pixels = augment.shift_pixels
    # Half a pixel is rounded to none.
    if 0 < pixels <= 0.5:
        raise ValueError(
            f"training.augment.shift_pixels is {pixels:g}, but images move by whole pixels; give "
            "more than 0.5"
        )
    if pixels >= min(media.height, media.width):
        raise ValueError(
            f"training.augment.shift_pixels is {pixels:g}, but data.{media.modality} is "
            f"{media.height} x {media.width} pixels; nothing might be left of an image"
        )


def _check_times(augment: AugmentConfig, media: AudioFormat) -> None:
    step = 1 / media.sample_rate
    if media.mel is not None:
        step = media.mel.hop_length(media.sample_rate) / media.sample_rate
        if augment.mask_bands >= media.mel.num_mels:
            raise ValueError(
                f"training.augment.mask_bands is {augment.mask_bands}, but data.audio.mel has "
                f"{media.mel.num_mels} bands; hide fewer"
            )
    for field in ("shift_seconds", "mask_seconds"):
        seconds = getattr(augment, field)
        if field in fields_of(media) and 0 < seconds <= step / 2:
            raise ValueError(
                f"training.augment.{field} is {seconds:g}, but the sound has a step of {step:g} "
                "seconds; give more than half of that"
            )
        if field in fields_of(media) and seconds >= media.seconds:
            raise ValueError(
                f"training.augment.{field} is {seconds:g}, but data.audio.seconds is "
                f"{media.seconds:g}; nothing might be left of a recording"
            )
