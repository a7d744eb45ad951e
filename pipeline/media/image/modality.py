"""The modality `image`."""

import io
from collections.abc import Iterator

import numpy as np

from pipeline.media.image.decode import ImageFormat, decode_image, encode_jpeg
from pipeline.media.modality import Modality, words


class ImageModality(Modality[ImageFormat]):
    """Images of one size, uint8 `[height, width, channels]`."""

    format = ImageFormat
    extensions = words(
        "avif bmp gif heic ico j2k jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm qoi tga tif tiff webp"
    )
    inputs = "pipeline.inputs.image:ImageInputs"
    augmentation = "pipeline.training.augmentation.images:change_images"
    not_read = frozenset({"encoding", "jpeg_quality", "max_pixels"})
    is_in_every_manifest = True

    def decode(
        self, data: bytes, fmt: ImageFormat, *, name: str = "", strict: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield the image of a file."""
        yield decode_image(data, fmt, strict=strict)

    def array_type(self, fmt: ImageFormat) -> tuple[np.dtype, tuple[int, ...]]:
        """Return uint8 and `(height, width, channels)`."""
        return np.dtype(np.uint8), (fmt.height, fmt.width, fmt.channels)

    def encode(self, array: np.ndarray, fmt: ImageFormat) -> bytes:
        """Encode an image as .npy, or as JPEG if the format says so."""
        if fmt.encoding == "jpeg":
            return encode_jpeg(array, fmt.jpeg_quality)
        return super().encode(array, fmt)

    def decode_member(self, content: bytes | memoryview, fmt: ImageFormat) -> np.ndarray:
        """Decode what `encode` returned. With JPEG, the pixels differ slightly."""
        if fmt.encoding == "jpeg":
            return decode_image(bytes(content), fmt)
        return super().decode_member(content, fmt)

    def example(self, fmt: ImageFormat) -> bytes:
        """Return a PNG with a gradient from black to white."""
        from PIL import Image

        ramp = np.linspace(0, 255, fmt.width).astype(np.uint8)
        pixels = np.broadcast_to(ramp, (fmt.height, fmt.width))
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        return buffer.getvalue()
