"""The interface that the pipeline requires of a modality, as the base of its one class."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.format import MediaFormat

Format = TypeVar("Format", bound=MediaFormat)


@dataclass(frozen=True)
class RowColumn:
    """One column of a modality whose samples are rows.

    Attributes:
        name: The name of the column.
        role: `number`, or `category` for a value that is one of several.
        field: The field of the format that names the column.
    """

    name: str
    role: Literal["number", "category"]
    field: str


@dataclass(frozen=True)
class Conversion:
    """How arrays of one format are converted to another format of the same modality.

    Attributes:
        read: The format in which the members of a shard are read.
        convert: Takes an array of `read` and returns the array that the model takes.
        uncertain: Takes several stacked arrays and returns bool `[arrays]`: whether the shard has
            lost information that the model needs. None if that cannot happen.
    """

    read: MediaFormat
    convert: Callable[[np.ndarray], np.ndarray]
    uncertain: Callable[[np.ndarray], np.ndarray] | None = None


def words(text: str) -> frozenset[str]:
    """Split a text at spaces and return the set of its words."""
    return frozenset(text.split())


def unchanged(array: np.ndarray) -> np.ndarray:
    """Return the array itself."""
    return array


class Modality(Generic[Format]):
    """One kind of media: from a file to an array, and from the array to a shard and back.

    A subclass must set `format`, `extensions` and `inputs`, and define `decode`, `array_type` and
    `example`. Everything else has a default for arrays of one shape. Subclasses must not import
    torch, because decoders run in the sandbox's child.

    Attributes:
        format: The class of the format.
        extensions: The extensions of the files, in lower case, without the dot.
        inputs: The subclass of `pipeline.inputs.modality.ModalityInputs` for this modality, as
            `module:class`.
        augmentation: The function that changes training batches at random, as `module:function`.
            It takes the arguments of `pipeline.training.augmentation.batch.change`. None for none.
        source: What a listing contains for a sample. `file`: a path, or the bytes of the file.
            `text`: the text itself. `row`: the values, each in its own column.
        shortest: The shortest first axis of an array. None if all arrays of a format have one
            shape.
        brings: The names of other modalities that a file of this one also contains.
        not_read: The fields of the format that a model does not depend on. They select samples, or
            say how shards store them.
        later_fields: The fields of the format that are younger than shard sets that have the
            modality, and their default values. A manifest, which is part of the set's digest, names
            them only where they differ.
        fitted_key: The key in a shard set's manifest for the statistics of the training rows. None
            if the modality needs no statistics.
        is_in_every_manifest: Whether a set without this modality mentions it in its manifest. This
            is part of the set's digest, so it is true only for the first six modalities.
    """

    format: type[Format]
    extensions: frozenset[str]
    inputs: str
    augmentation: str | None = None
    source: Literal["file", "text", "row"] = "file"
    shortest: int | None = None
    brings: frozenset[str] = frozenset()
    not_read: frozenset[str] = frozenset()
    later_fields: ClassVar[Mapping[str, Any]] = {}
    fitted_key: str | None = None
    is_in_every_manifest: bool = False

    @property
    def name(self) -> str:
        """The name of the modality, from its format."""
        return self.format.modality

    def in_manifest(self, fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return the fields of a format as a shard set's manifest has them.

        Args:
            fields: All fields of the format; None if the set lacks the modality.
        """
        if fields is None:
            return None
        later = self.later_fields
        return {
            name: value
            for name, value in fields.items()
            if name not in later or later[name] != value
        }

    # --- from a file to arrays ---

    def decode(
        self, data: bytes, fmt: Format, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the arrays of a file in order: one, or all those into which the file is cut.

        Args:
            data: The bytes of the file.
            fmt: The format of the arrays.
            name: The name of the file. Some formats are recognised only by their extension.
            strict: Whether to reject a file that is damaged or cut short.

        Raises:
            MediaError: The file cannot be used; the message is the reason.
        """
        raise NotImplementedError

    def cuts(self, fmt: Format) -> bool:
        """Return whether one file may give several samples."""
        return False

    def decode_with(
        self,
        data: bytes,
        fmt: Format,
        others: Mapping[str, MediaFormat],
        *,
        required: Collection[str] = (),
        strict: bool = True,
    ) -> Iterator[dict[str, np.ndarray | None]]:
        """Yield what `decode` yields, and the arrays of other modalities in the same file.

        Args:
            data: The bytes of the file.
            fmt: The format of the arrays.
            others: The formats of the other modalities, by name. All names are in `brings`.
            required: The names of the modalities that the file must contain.
            strict: Whether to reject a file that is damaged or cut short.

        Yields:
            Arrays by modality; None if a sample lacks the modality.

        Raises:
            MediaError: The file cannot be used, or lacks a required modality.
        """
        raise NotImplementedError

    # --- arrays ---

    def array_type(self, fmt: Format) -> tuple[np.dtype, tuple[int, ...]]:
        """Return the dtype of a format's arrays, and the shape of the longest one."""
        raise NotImplementedError

    def fits(self, array: np.ndarray, fmt: Format) -> bool:
        """Return whether an array could come from `decode`, or from a shard for a model."""
        return self._is_of(array, *self.array_type(fmt))

    def _is_of(self, array: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
        if array.dtype != dtype or array.ndim != len(shape) or array.shape[1:] != shape[1:]:
            return False
        least = shape[0] if self.shortest is None else self.shortest
        return least <= len(array) <= shape[0]

    # --- members of shards ---

    def encode(self, array: np.ndarray, fmt: Format) -> bytes:
        """Encode an array as the content of the shard member `fmt.member`."""
        from shards.npy import encode_npy

        return encode_npy(array)

    def encode_members(self, array: np.ndarray, fmt: Format) -> dict[str, bytes]:
        """Encode an array as all its shard members, name to content."""
        return {fmt.member: self.encode(array, fmt)}

    def model_member(self, fmt: Format) -> str:
        """Return the name of the shard member that a model reads."""
        return fmt.member

    def decode_member(self, content: bytes | memoryview, fmt: Format) -> np.ndarray:
        """Decode the content of the shard member that a model reads.

        Raises:
            MediaError: The content is damaged.
            shards.ShardError: The content is damaged.
        """
        from shards.npy import decode_npy

        return decode_npy(content)

    def model_array(self, array: np.ndarray, fmt: Format) -> np.ndarray:
        """Convert an array from `decode` to the array that a shard would hold for a model."""
        return array

    # --- formats ---

    def from_dict(self, fields: Mapping[str, Any]) -> Format:
        """Return the format with these fields, which have JSON's types (`dataclasses.asdict`)."""
        return self.format(**fields)

    def unreadable(self, stored: Format, fmt: Format) -> str | None:
        """Return why a model that takes `fmt` cannot read a set of `stored`, or None.

        Fields that differ between the two formats are reported elsewhere.
        """
        return None

    def compared(self, stored: Format, fmt: Format) -> frozenset[str]:
        """Return the fields that must be equal for a model of `fmt` to read a set of `stored`."""
        return frozenset(asdict(fmt)) - self.not_read

    def conversion(self, stored: Format, fmt: Format) -> Conversion:
        """Return how a model that takes `fmt` reads a set of `stored`."""
        return Conversion(stored, unchanged)

    # --- rows: only where `source` is `row` ---

    def columns(self, fmt: Format) -> tuple[RowColumn, ...]:
        """Return the columns of a row, in the order of the array."""
        return ()

    def read_row(self, data: bytes, fmt: Format) -> dict[str, float | str | None]:
        """Read the row in a file, by column. A missing value is None.

        Raises:
            MediaError: The file does not contain such a row.
        """
        raise NotImplementedError

    def encode_row(
        self, values: Mapping[str, Any], fmt: Format, *, careful: bool = False
    ) -> np.ndarray:
        """Encode a row as an array.

        Args:
            values: The values by column.
            fmt: The format of the row.
            careful: Whether to also reject a value that may have lost its name in a conversion.

        Raises:
            MediaError: The modality has no rows, or a column is missing or has another type.
        """
        raise MediaError(f"a row of a table, but the model takes {self.name}")

    def fit(self, rows: Iterable[Any], fmt: Format) -> dict[str, Any]:
        """Compute the statistics of the training rows, in JSON's types.

        Args:
            rows: `pyarrow.RecordBatch`es of the columns: float64 for numbers, text for categories.
            fmt: The format of the rows.

        Raises:
            MediaError: The rows cannot be used.
        """
        raise NotImplementedError

    def fitted(self, fmt: Format, made_with: Mapping[str, Any]) -> Format:
        """Return the format with the statistics of the training rows.

        Args:
            fmt: The format without them.
            made_with: The configuration in a set's manifest. It contains the result of `fit` under
                `fitted_key`.

        Raises:
            ValueError: The statistics are missing.
        """
        return fmt

    # --- serving ---

    def example(self, fmt: Format) -> Any:
        """Return an invented input for a served model: a file's bytes, a text, or a row by column.

        Raises:
            ValueError: The format is not fitted.
        """
        raise NotImplementedError
