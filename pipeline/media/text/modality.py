"""The modality `text`."""

from collections.abc import Iterator

import numpy as np

from pipeline.media.modality import Modality
from pipeline.media.text.decode import TextFormat, decode_text


class TextModality(Modality[TextFormat]):
    """Contexts of texts, uint8 `[bytes]`."""

    format = TextFormat
    extensions = frozenset({"md", "text", "txt"})
    inputs = "pipeline.inputs.text:TextInputs"
    augmentation = "pipeline.training.augmentation.text:change_text"
    source = "text"
    shortest = 1
    not_read = frozenset({"cut", "overlap", "errors"})
    is_in_every_manifest = True

    def decode(
        self, data: bytes, fmt: TextFormat, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the contexts of a text."""
        yield from decode_text(data, fmt, strict=strict)

    def cuts(self, fmt: TextFormat) -> bool:
        """Return whether all contexts of a text are used, not only the first."""
        return fmt.cut == "all"

    def array_type(self, fmt: TextFormat) -> tuple[np.dtype, tuple[int, ...]]:
        """Return uint8 and `(max_length,)`."""
        return np.dtype(np.uint8), (fmt.max_length,)

    def example(self, fmt: TextFormat) -> str:
        """Return two words."""
        return "an example"
