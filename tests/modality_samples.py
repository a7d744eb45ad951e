"""Small media of every modality in two classes, and what reads them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import trimesh
from small_media import film, grey_frames, tone
from sounds import encoded

from perceiver_model.fourier import position_table
from pipeline.config.tree import Config
from pipeline.inputs.positions import position_spec
from pipeline.media import (
    AudioFormat,
    FittedTableFormat,
    MediaFormat,
    MelFormat,
    PointsFormat,
    PointsFourier,
    TableFormat,
    TextFormat,
    VideoFormat,
    decode,
    encode_members,
    fit_vocabulary,
    media_to_dict,
)  # fmt: skip
from pipeline.media.table.modality import VOCABULARY
from shards import Sample, ShardSet, publish, write_position_table, write_shard

VIDEO = VideoFormat(num_frames=4, height=8, width=8, channels=1, frames_per_second=4)
POINTS = PointsFormat(num_points=32, fourier=PointsFourier(num_bands=4, max_resolution=8.0))
TEXT = TextFormat(max_length=24)
SOUND = AudioFormat(sample_rate=4000, seconds=0.5, encoding="flac")
MEL = AudioFormat(sample_rate=4000, seconds=0.5, mel=MelFormat(num_mels=8))
COLUMNS = TableFormat(numeric=("x", "y"), categorical=("c",))
ROWS = [
    {"x": 1000.0 * number, "y": None if number % 5 == 0 else -1.5, "c": "rs"[number % 2]}
    for number in range(12)
]
TABLE = FittedTableFormat.of(COLUMNS, fit_vocabulary([pa.RecordBatch.from_pylist(ROWS)], COLUMNS))

ADAPTERS = {
    "video": {"kind": "space_time_patches", "num_frames": 2, "height": 4, "width": 4},
    "points": {"kind": "points", "num_bands": 4, "max_resolution": 8.0},
    "text": {"kind": "token_embedding", "num_channels": 8},
    "table": {"kind": "columns", "num_channels": 8},
    "sound": {"kind": "chunks", "chunk_size": 100},
    "mel": {"kind": "mel", "num_mels": 8},
}
FORMATS: dict[str, MediaFormat] = {
    "video": VIDEO, "points": POINTS, "text": TEXT, "table": TABLE, "sound": SOUND, "mel": MEL,
}  # fmt: skip


def wav(samples: np.ndarray) -> bytes:
    return encoded(samples, 4000, format="WAV", subtype="PCM_16")


def raw_media(kind: str, number: int) -> bytes:
    """A file of class `number % 2`."""
    other = number % 2
    if kind == "video":
        return film(grey_frames([30 + 150 * other + number] * 8), fps=4)
    if kind == "points":
        solid = trimesh.creation.box((1, 1, 5)) if other else trimesh.creation.icosphere(1)
        return solid.apply_scale(1 + number).export(file_type="stl")
    if kind == "text":
        return (f"naïve {number} " + "ab"[other] * (5 + number)).encode()
    if kind == "table":
        return json.dumps(ROWS[number % 12]).encode()
    return wav(tone(0.3 + 0.02 * (number % 10), 4000, 1500.0 if other else 200.0))


def make_config(kind: str, output: Path, **training: object) -> Config:
    fmt = COLUMNS if kind == "table" else FORMATS[kind]
    section = media_to_dict(fmt)
    return Config.model_validate(
        {
            "name": kind,
            "output": str(output),
            "data": {"train": "unused", section.pop("modality"): section},
            "model": {
                "adapter": ADAPTERS[kind],
                "encoder": {
                    "num_latents": 4, "latent_dim": 16, "num_blocks": 1, "num_cross_attends": 1,
                    "num_self_attends": 1, "num_self_heads": 2, "latent_init_std": 1.0,
                    "cross_channels": 16,
                },
            },
            "training": {
                "batch_size": 8, "epochs": 1, "schedule": {"warmup_epochs": 0}, **training
            },
            "cluster": {"num_workers": 0},
            "tracking": {"system_metrics": False},
        },
        strict=False,
    )  # fmt: skip


def make_shards(kind: str, folder: Path, config: Config, count: int = 24) -> ShardSet:
    """A shard set of decoded files, whose validation samples are the training ones again."""
    fmt = FORMATS[kind]
    for shard, split in enumerate(("train", "validation")):
        samples = []
        for number in range(count):
            data = raw_media(kind, number)
            members = encode_members(decode(data, fmt), fmt)
            digest = hashlib.sha256(data).hexdigest()
            name = f"{split}/{number}"
            samples.append(Sample(f"{split}{number}", members, number % 2, name, digest))
        write_shard(folder / "staging", shard, split, samples)
    vocabulary = {VOCABULARY: TABLE.vocabulary.to_dict()} if kind == "table" else {}
    spec = position_spec(config.classifier(2))
    if spec:
        table = position_table(spec.shape, spec.num_bands, spec.max_resolution).numpy()
        write_position_table(folder / "staging", spec, table)
    publish(
        folder / "staging", Path(config.shards_folder), numbers=range(2), config=vocabulary,
        input_digest="0" * 64, classes=("zero", "one"), positions=[spec] if spec else [],
    )  # fmt: skip
    return ShardSet.open(config.shards_folder)
