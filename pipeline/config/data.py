"""The section `data`: where the raw media are, what they are, and how they are decoded."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.addresses import absolute_path, local_path
from pipeline.config.base import ConfigBase
from pipeline.config.modalities import MediaColumns, ModalityName, with_media_sections
from pipeline.media.format import MediaFormat
from pipeline.media.registered import MODALITIES
from pipeline.media.targets import TargetConfig

SPLITS = ("train", "validation", "test")


class ColumnsConfig(MediaColumns):
    """Columns of a listing, by what they hold.

    Attributes:
        image, audio, video, points: columns of paths (relative to the listing's folder, absolute,
            or URLs; see `data.allow`), or of the files' bytes where their type is binary.
        text: column of texts themselves.
        key: column that names the samples; where null, their files name them.
        split: column that says `train`, `validation` or `test`; `data.validation` and
            `data.test` are then null.
    """

    key: str | None = None
    split: str | None = None


class _Sources(ConfigBase):
    train: str = Field(min_length=1)
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    test: str | None = None
    allow: tuple[str, ...] = ()
    max_file_bytes: int = Field(default=2 * 1024**3, ge=1)
    layout: Literal["auto", "folders", "listing", "tars"] = "auto"


if TYPE_CHECKING:
    _Media = _Sources
else:
    _Media = with_media_sections(_Sources)


class DataConfig(_Media):
    """Raw media and how they are decoded: at least one of the sections for modalities is given.

    Each registered modality has a section of its name, with its format, between ``layout`` and
    ``columns``.

    Attributes:
        train: a folder, a listing file (`.csv`, `.parquet`, `.jsonl`), or WebDataset tars (a
            `.tar` file, a glob or brace range of them, or, by `layout: tars`, their folder);
            any fsspec URL.
        validation: the same, or the share of the training samples to hold out (stratified by class,
            chosen by `seed`), or null for none.
        test: as `train`, or null.
        allow: folders and URLs that rows of a listing may name besides what lies in the listing's
            own folder; relative paths are of the working directory.
        max_file_bytes: a larger file is refused, before it is read or while it grows.
        layout: what the sources are; `auto` tells by their names.
        image: what images become; null where the data has none.
        audio: what recordings become; null where the data has none.
        video: what films become; null where the data has none.
        points: what meshes and point clouds become; null where the data has none.
        text: what texts become; null where the data has none.
        table: what rows of a table become; null where the data has none.
        columns: what a listing's columns hold.
        group: what keeps samples together that belong together, as the cuts of a recording do: the
            samples of a group lie in one split. For a listing it is a column; for folders and tars
            a regular expression whose one capturing group names the group, on the path of the
            sample below its root. By null every sample stands for itself.
        target: what a sample is to be mapped to.
        allow_missing: modalities that a sample may lack.
        max_bad_fraction: the run fails once more than this share of the samples cannot be used.
        strict: whether files are set aside that are damaged or cut short, and of which decoders
            would make something all the same; if false, these are samples.
        samples_per_shard: samples planned for a shard.
        decode_seconds: processor time that decoding may take for one sample.
        decode_memory_mib: memory that decoding may take.
        sandbox: `require` ends the run where the decoders' sandbox lacks one of its protections;
            `best` takes those that a machine has, and says which are missing.
        verify_samples: whether training and evaluation compare each sample that they read from the
            shards with the sha256 that it was written with.
        corrupt_samples: what they do with one that is not as it was written, or cannot be read:
            `skip` leaves it out and names it, as one that cannot be decoded; `fail` ends the
            run.
    """

    columns: ColumnsConfig = ColumnsConfig()
    group: str | None = Field(default=None, min_length=1)
    target: TargetConfig = TargetConfig()
    allow_missing: tuple[ModalityName, ...] = ()
    max_bad_fraction: float = Field(default=0.5, ge=0, le=1)
    strict: bool = True
    samples_per_shard: int = Field(default=1000, ge=1)
    decode_seconds: float = Field(default=60.0, gt=0)
    decode_memory_mib: int = Field(default=2048, ge=256)
    sandbox: Literal["best", "require"] = "best"
    verify_samples: bool = True
    corrupt_samples: Literal["skip", "fail"] = "skip"

    @field_validator("allow")
    @classmethod
    def _allowed_are_absolute(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in allow:
            if not prefix or ("::" in prefix and local_path(prefix) is None):
                raise ValueError(f"is {prefix!r}; give a folder or one URL, no chain of several")
        return tuple(map(absolute, allow))

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        formats = self.formats
        if not formats:
            raise ValueError(f"give at least one of the sections {', '.join(MODALITIES)}")
        for modality in self.allow_missing:
            if modality not in formats:
                raise ValueError(f"allow_missing names {modality!r}, which has no section")
        if len(formats) == 1 and self.allow_missing:
            raise ValueError("allow_missing: a sample's only modality cannot be missing")
        for modality in MODALITIES:
            if self.columns.of(modality) and modality not in formats:
                raise ValueError(f"columns.{modality} is given, but not the section {modality!r}")
        if self.target.kind == "mask" and "image" not in formats:
            raise ValueError("target.kind is 'mask', which needs the section 'image'")
        if self.columns.split and (self.validation is not None or self.test is not None):
            raise ValueError("columns.split names the splits; leave validation and test null")
        if self.group and not self.columns.split and self.validation is None and self.test is None:
            raise ValueError(
                "group keeps groups in one split, and there is only one; give validation, test or "
                "columns.split, or leave group null"
            )
        return self

    @property
    def formats(self) -> dict[str, MediaFormat]:
        """The formats given, by modality, in the order of `MODALITIES`."""
        given = ((modality, getattr(self, modality)) for modality in MODALITIES)
        return {modality: fmt for modality, fmt in given if fmt is not None}

    @property
    def media(self) -> MediaFormat:
        """The format of the one modality. Raises ValueError where there are several."""
        return self.one_of(self.formats)

    @staticmethod
    def one_of(formats: Mapping[str, MediaFormat]) -> MediaFormat:
        """The only one. Raises ValueError where there are several."""
        if len(formats) > 1:
            raise ValueError(f"data has several modalities: {', '.join(formats)}")
        return next(iter(formats.values()))


def absolute(path: str) -> str:
    """A local path made absolute; a URL as it is."""
    return path if "://" in path else absolute_path(path)
