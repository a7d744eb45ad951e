"""What the pipeline asks of a modality: the base of the one class that each modality has."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from pipeline.media.errors import MediaError
from pipeline.media.format import MediaFormat

Format = TypeVar("Format", bound=MediaFormat)


@dataclass(frozen=True)
class RowColumn:
    """One column of a modality whose samples are rows.

    Attributes:
        name: the column's name.
        role: `number`, or `category` for a value that is one of several.
        field: the field of the format that names the column.
    """

    name: str
    role: Literal["number", "category"]
    field: str


@dataclass(frozen=True)
class Conversion:
    """How arrays of one format become those of another format of the same modality.

    Attributes:
        read: the format in which the members of a shard are read.
        convert: takes an array of `read` and returns the array that the model takes.
        doubtful: takes several arrays, stacked, and says of each whether the shard has lost what
            the model would need to know, bool `[arrays]`. None where that cannot be.
    """

    read: MediaFormat
    convert: Callable[[np.ndarray], np.ndarray]
    doubtful: Callable[[np.ndarray], np.ndarray] | None = None


def words(text: str) -> frozenset[str]:
    """The words of a text that spaces part."""
    return frozenset(text.split())


def unchanged(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


class Modality(Generic[Format]):
    """One kind of media: from a file to an array, and from the array to a shard and back.

    A subclass must set `format`, `extensions` and `inputs`, and define `decode`,
    `array_type` and `example`. All else has a default that suits arrays of one shape. Subclasses
    import no torch: decoders run in the sandbox's child.

    Attributes:
        format: the class of the format.
        extensions: of the files' names, in lower case, without the dot.
        inputs: `module:class` of the subclass of
            `pipeline.inputs.modality.ModalityInputs` that belongs to it.
        augmentation: `module:function` that changes training batches at random, with the
            arguments of `pipeline.training.augmentation.batch.change`; None for none.
        source: what a sample is. Of `file` a listing holds paths or the files' bytes, of
            `text` it holds the texts themselves, and of `row` it holds the values in columns
            of their own.
        shortest: how short the first axis of an array may be. None if all arrays of a format have
            one shape.
        brings: names of other modalities that a file of this one holds, too.
        not_read: fields of the format that say which samples there are and how shards hold them.
            What a model is given does not depend on them.
        fitted_key: under which a shard set's manifest has what the training rows told; None where
            nothing is to be learned from them.
        is_in_every_manifest: whether a set that has nothing of the modality says so in its
            manifest. It is part of the set's digest, so this is true of the first six alone.
    """

    format: type[Format]
    extensions: frozenset[str]
    inputs: str
    augmentation: str | None = None
    source: Literal["file", "text", "row"] = "file"
    shortest: int | None = None
    brings: frozenset[str] = frozenset()
    not_read: frozenset[str] = frozenset()
    fitted_key: str | None = None
    is_in_every_manifest: bool = False

    @property
    def name(self) -> str:
        """The modality's name, as the format has it."""
        return self.format.modality

    # --- from a file to arrays ---

    def decode(
        self, data: bytes, fmt: Format, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """The arrays that a file gives, in order: one, or all of those into which it is cut.

        Args:
            data: the file's bytes.
            fmt: what to make of them.
            name: the file's name, for formats that only their extension tells.
            strict: whether a file is refused that is damaged or cut short.

        Raises:
            MediaError: the file cannot be used; the text is the reason.
        """
        raise NotImplementedError

    def cuts(self, fmt: Format) -> bool:
        """Whether one file may give several samples."""
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
        """As `decode`, together with what the file holds of other modalities.

        Args:
            others: the formats wanted of those, by modality; they are among `brings`.
            required: names of those that the file must hold.

        Yields:
            Arrays by modality; None where a sample has none.
        """
        raise NotImplementedError

    # --- arrays ---

    def array_type(self, fmt: Format) -> tuple[np.dtype, tuple[int, ...]]:
        """The dtype of a format's arrays, and the shape of the longest."""
        raise NotImplementedError

    def fits(self, array: np.ndarray, fmt: Format) -> bool:
        """Whether an array is one that `decode` makes, or that a shard holds for a model."""
        return self._is_of(array, *self.array_type(fmt))

    def _is_of(self, array: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
        if array.dtype != dtype or array.ndim != len(shape) or array.shape[1:] != shape[1:]:
            return False
        least = shape[0] if self.shortest is None else self.shortest
        return least <= len(array) <= shape[0]

    # --- members of shards ---

    def encode(self, array: np.ndarray, fmt: Format) -> bytes:
        """The content of the shard member `fmt.member`."""
        from shards.npy import encode_npy

        return encode_npy(array)

    def encode_members(self, array: np.ndarray, fmt: Format) -> dict[str, bytes]:
        """All shard members that are made of an array, name to content."""
        return {fmt.member: self.encode(array, fmt)}

    def model_member(self, fmt: Format) -> str:
        """The name of the shard member that a model reads."""
        return fmt.member

    def decode_member(self, content: bytes | memoryview, fmt: Format) -> np.ndarray:
        """The array in the shard member that a model reads.

        Raises:
            MediaError: the content is damaged.
            shards.ShardError: likewise.
        """
        from shards.npy import decode_npy

        return decode_npy(content)

    def model_array(self, array: np.ndarray, fmt: Format) -> np.ndarray:
        """What a shard would hold for a model, of an array that `decode` made."""
        return array

    # --- formats ---

    def from_dict(self, fields: Mapping[str, Any]) -> Format:
        """The format of fields in JSON's types, as `dataclasses.asdict` gives them."""
        return self.format(**fields)

    def unreadable(self, stored: Format, fmt: Format) -> str | None:
        """Why a model that takes `fmt` can read no set of `stored`, or None.

        Fields of the two formats that differ are told elsewhere.
        """
        return None

    def compared(self, stored: Format, fmt: Format) -> frozenset[str]:
        """The fields that must be equal for a model that takes `fmt` to read `stored`."""
        return frozenset(asdict(fmt)) - self.not_read

    def conversion(self, stored: Format, fmt: Format) -> Conversion:
        """How a model that takes `fmt` reads a set of `stored`."""
        return Conversion(stored, unchanged)

    # --- rows: only where `source` is `row` ---

    def columns(self, fmt: Format) -> tuple[RowColumn, ...]:
        """The columns of a row, in the order of the array."""
        return ()

    def read_row(self, data: bytes, fmt: Format) -> dict[str, float | str | None]:
        """The row that a file holds, by column; None where a value is missing.

        Raises:
            MediaError: the file holds no such row.
        """
        raise NotImplementedError

    def encode_row(
        self, values: Mapping[str, Any], fmt: Format, *, careful: bool = False
    ) -> np.ndarray:
        """A row as an array.

        Args:
            values: by column.
            careful: whether a value is refused, too, that may have lost its name on the way.

        Raises:
            MediaError: the modality has no rows, or a column is missing or of another type.
        """
        raise MediaError(f"a row of a table, but the model takes {self.name}")

    def fit(self, rows: Iterable[Any], fmt: Format) -> dict[str, Any]:
        """What the training rows tell, in JSON's types.

        Args:
            rows: `pyarrow.RecordBatch` of the columns: float64 numbers, and text for categories.

        Raises:
            MediaError: the rows cannot be used.
        """
        raise NotImplementedError

    def fitted(self, fmt: Format, made_with: Mapping[str, Any]) -> Format:
        """The format with what the training rows told.

        Args:
            made_with: the configuration in a set's manifest; `fit`'s result is in it under
                `fitted_key`.

        Raises:
            ValueError: it is not there.
        """
        return fmt

    # --- serving ---

    def example(self, fmt: Format) -> Any:
        """A made-up input that a served model takes: a file's bytes, a text, or a row by column.

        Raises:
            ValueError: the format is not fitted.
        """
        raise NotImplementedError
