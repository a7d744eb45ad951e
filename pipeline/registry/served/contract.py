"""What a registered model says of itself: its settings, its signature and an example that works."""

import io
import wave
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.media import (
    AudioFormat,
    FittedTableFormat,
    ImageFormat,
    MediaFormat,
    PointsFormat,
    TextFormat,
    VideoFormat,
)

SETTINGS: dict[str, Any] = {
    "allow_paths": False,
    "max_inputs": 1000,
    "max_rows": 100_000,
    "max_input_mib": 256,
    "decode_seconds": 60.0,
    "decode_memory_mib": 2048,
    "strict": True,
    "sandbox": "best",
}
"""The keys of `mlflow.pyfunc.load_model(…, model_config=…)` and their defaults."""


def signature(media: MediaFormat) -> Any:
    """The MLflow signature of a classifier of media of a format.

    Media are one column, binary, or of texts string. It has no name, for MLflow takes lists and
    arrays by no other; a data frame's column may have any. A table's columns have their names.
    They are of any type, since MLflow would refuse whole numbers as double, and cannot tell 1 from
    1.0 in a column of categories; and optional, which MLflow's type *any* is.

    Args:
        media: of a table, a `FittedTableFormat`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema

    if isinstance(media, FittedTableFormat):
        inputs = [ColSpec(AnyType(), name, required=False) for name in media.columns]
    else:
        is_text = isinstance(media, TextFormat)
        inputs = [ColSpec(DataType.string if is_text else DataType.binary)]
    outputs = [
        ColSpec(DataType.string, "source"),
        ColSpec(DataType.string, "label", required=False),
        ColSpec(DataType.double, "probability", required=False),
        ColSpec(Map(DataType.double), "probabilities", required=False),
        ColSpec(DataType.string, "error", required=False),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def column_types(media: MediaFormat) -> dict[str, str]:
    """What each of a table's columns holds: `number` or `category`."""
    if not isinstance(media, FittedTableFormat):
        return {}
    kinds = ["number"] * len(media.numeric) + ["category"] * len(media.categorical)
    return dict(zip(media.columns, kinds, strict=True))


def input_example(media: MediaFormat) -> Any:
    """A data frame of one made-up input that the model takes."""
    import pandas as pd

    match media:
        case FittedTableFormat():
            known = media.vocabulary.categories
            numbers = dict(zip(media.numeric, media.vocabulary.mean, strict=True))
            names = {name: next(iter(known[name]), "unknown") for name in media.categorical}
            return pd.DataFrame([numbers | names])
        case TextFormat():
            return pd.DataFrame({"text": ["an example"]})
        case ImageFormat():
            example = _image(media)
        case AudioFormat():
            example = _sound(media)
        case VideoFormat():
            example = _film(media)
        case PointsFormat():
            example = _MESH
        case _:
            raise ValueError(f"{media.modality}: a table needs its vocabulary")
    return pd.DataFrame({media.modality: [example]})


_MESH = b"""\
v 0 0 0
v 1 0 0
v 0 1 0
v 0 0 1
f 1 3 2
f 1 2 4
f 2 3 4
f 3 1 4
"""


def _image(media: ImageFormat) -> bytes:
    from PIL import Image

    ramp = np.linspace(0, 255, media.width).astype(np.uint8)
    pixels = np.broadcast_to(ramp, (media.height, media.width))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _sound(media: AudioFormat) -> bytes:
    seconds = min(media.seconds, max(1.0, media.min_seconds))
    times = np.arange(round(seconds * media.sample_rate)) / media.sample_rate
    samples = (8000 * np.sin(2 * np.pi * 220 * times)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(media.sample_rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def _film(media: VideoFormat) -> bytes:
    """A grey film of small frames, one more than a clip has."""
    import av

    buffer = io.BytesIO()
    rate = Fraction(media.frames_per_second).limit_denominator(1000)
    with av.open(buffer, "w", format="avi") as output:
        stream: Any = output.add_stream("mjpeg", rate=rate)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuvj420p"
        for number in range(media.num_frames + 1):
            grey = np.full((64, 64, 3), 255 * number // media.num_frames, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
