"""Pictures of a run as MLflow names them, so that its pages show them by their steps.

`MlflowClient.log_image` writes the same names. It waits for the server, which a training must not.
"""

import io
import time
import uuid

from pipeline.config.folders import Folder
from pipeline.runs.storage import make_folder, write_bytes

THUMBNAIL = 256
"""The largest width and height of the small picture, in pixels, as MLflow's own."""


def write_image(folder: Folder, name: str, png: bytes, step: int) -> tuple[Folder, Folder]:
    """Write a picture and a small copy of it, and return their paths.

    Args:
        folder: The folder.
        name: The name of the picture, of letters, digits, `_` and `-`.
        png: The picture as PNG.
        step: The step of the training.
    """
    from PIL import Image

    make_folder(folder)
    stem = f"{name}+step+{step}+timestamp+{int(time.time() * 1000)}+{uuid.uuid4()}"
    whole, small = folder / f"{stem}.png", folder / f"{stem}+compressed.webp"
    write_bytes(whole, png)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP")
    write_bytes(small, buffer.getvalue())
    return whole, small
