"""The section `data`: where the raw media lie, what they are, and how they are decoded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.ray_session import in_ray_job
from pipeline.config.addresses import absolute_path, local_path
from pipeline.config.base import ConfigBase
from pipeline.config.modalities import MediaColumns, ModalityName, with_media_sections
from pipeline.media.format import MediaFormat
from pipeline.media.registered import MODALITIES, modality_of
from pipeline.media.targets import TargetConfig

SPLITS = ("train", "validation", "test")


class ColumnsConfig(MediaColumns):
    """The columns of a listing, by their content.

    Attributes:
        image, audio, video, points: The column with the files of the modality. It holds paths
            (relative to the listing's folder, absolute, or URLs; see `data.allow`), or the files'
            bytes if its type is binary.
        text: The column with the texts themselves.
        key: The column with the names of the samples; null names them after their files.
        split: The column that holds `train`, `validation` or `test`. `data.validation` and
            `data.test` must then be null.
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
    from shards.remote_tars import RemoteReading

    _Media = _Sources
else:
    _Media = with_media_sections(_Sources)


class DataConfig(_Media):
    """The raw media, and how they are decoded. At least one section of a modality is given.

    Each registered modality has a section with its name and its format, between `layout` and
    `columns`.

    Attributes:
        train: The source of the training samples: a folder, a listing file (`.csv`, `.parquet`,
            `.jsonl`), or WebDataset tars (a `.tar` file, a glob or brace range of them, or, with
            `layout: tars`, their folder). It may be any fsspec URL.
        validation: The source of the validation samples, or the share of the training samples to
            hold out (stratified by class, chosen by `seed`); null makes no validation split.
        test: The source of the test samples; null makes no test split.
        group: what keeps samples together that belong together, as the cuts of a recording do: the
            samples of a group lie in one split. For a listing it is a column; for folders and tars
            a regular expression whose one capturing group names the group, on the path of the
            sample below its root. By null every sample stands for itself.
        allow: The folders and URLs that rows of a listing may name, in addition to the listing's
            own folder. Relative paths start at the working directory.
        max_file_bytes: The size of the largest file that is read. A larger one is refused, before
            it is read or while it grows.
        layout: The kind of the sources; `auto` finds it by their names.
        image: The format of the images; null if the data has none.
        audio: The format of the recordings; null if the data has none.
        video: The format of the films; null if the data has none.
        points: The format of the meshes and point clouds; null if the data has none.
        text: The format of the texts; null if the data has none.
        table: The format of the rows of a table; null if the data has none.
        columns: The columns of a listing.
        target: The target of each sample.
        allow_missing: The modalities that a sample may lack.
        max_bad_fraction: The run fails if more than this share of the samples cannot be used.
        strict: Whether files that are damaged or cut short are set aside even if a decoder could
            read a part of them. If false, that part becomes a sample.
        samples_per_shard: The planned number of samples in a shard.
        decode_seconds: The processor time that decoding one sample may take.
        decode_memory_mib: The memory that decoding may take, in MiB.
        sandbox: `require` ends the run if the decoders' sandbox lacks one of its protections;
            `best` takes those that the machine has, and reports which are missing.
        verify_samples: Whether training and evaluation compare each sample that they read from the
            shards with its sha256 from when it was written.
        corrupt_samples: What training and evaluation do with a sample that has changed since it was
            written, or cannot be read: `skip` leaves it out and reports its name; `fail` ends the
            run.
        cache_folder: The folder on a node's local disk where trainings keep the shards of a set in
            object storage. All processes of the node share it. Null is `$PERCEIVER_CACHE`, else
            `perceiver/shards` in `$XDG_CACHE_HOME` or `~/.cache`.
        cache_gigabytes: The most gigabytes (10^9 bytes) in that folder. The shards that were not
            used for the longest time are removed first. Two windows of 16 shards should fit.
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
    cache_folder: str | None = Field(default=None, min_length=1)
    cache_gigabytes: float = Field(default=32.0, gt=0)

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
        cut = [name for name, fmt in formats.items() if modality_of(fmt).cuts(fmt)]
        if len(cut) > 1:
            raise ValueError(
                f"{' and '.join(cut)} are both cut into parts, and parts of one cannot be matched "
                "with those of the other; cut one of them (clips: all, cut: all)"
            )
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
    def remote_reading(self) -> "RemoteReading":
        """How trainings read a set that is not in a local folder."""
        from shards.remote_tars import RemoteReading, default_cache_folder

        folder = default_cache_folder() if self.cache_folder is None else Path(self.cache_folder)
        return RemoteReading(folder.expanduser(), max(1, int(self.cache_gigabytes * 10**9)))

    @property
    def formats(self) -> dict[str, MediaFormat]:
        """The given formats by modality, in the order of `MODALITIES`."""
        given = ((modality, getattr(self, modality)) for modality in MODALITIES)
        return {modality: fmt for modality, fmt in given if fmt is not None}

    @property
    def media(self) -> MediaFormat:
        """The format of the only modality.

        Raises:
            ValueError: There are several.
        """
        return self.one_of(self.formats)

    @staticmethod
    def one_of(formats: Mapping[str, MediaFormat]) -> MediaFormat:
        """Return the only format.

        Args:
            formats: The formats by modality.

        Raises:
            ValueError: There are several.
        """
        if len(formats) > 1:
            raise ValueError(f"data has several modalities: {', '.join(formats)}")
        return next(iter(formats.values()))


def absolute(path: str) -> str:
    """Return a local path as an absolute path, and a URL unchanged."""
    return path if "://" in path else absolute_path(path)


def refuse_relative_in_a_job(path: str) -> None:
    """Refuse a relative path in a Ray job, which runs in a copy of the working directory.

    Raises:
        ValueError: The path is relative, and this process is in a Ray job.
    """
    if in_ray_job() and absolute(path) != path and not path.startswith("~"):
        raise ValueError(
            f"is {path!r}, and a Ray job runs in a temporary copy of the working directory; give "
            "an absolute path that all machines share"
        )
