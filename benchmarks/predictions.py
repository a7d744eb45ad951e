"""`python -m benchmarks.predictions IMAGES ROWS`: `perceiver predict --to FOLDER`, measured.

First made-up JPEG files are predicted by processes of Ray Data, and by a bare loop in as many
processes, which decodes with Pillow and calls the model, without a sandbox, parts or errors. Then
made-up rows are predicted, and the most memory of this process is shown before and after.
"""

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from cluster.ray_session import ray_session
from perceiver_model import (
    ClassifierConfig,
    EncoderConfig,
    FourierConfig,
    ImageInput,
    PatchesConfig,
)
from perceiver_model.adapters.configs import ColumnsConfig
from pipeline.inputs.model_input import model_input
from pipeline.media import ImageFormat
from pipeline.media.table.decode import FittedTableFormat, TableVocabulary
from pipeline.registry.predict_folder import Request, predict_to_folder
from pipeline.registry.predict_inputs import Inputs
from pipeline.registry.predict_part import Weights
from pipeline.registry.served.card import ModelCard
from pipeline.registry.served.contract import SETTINGS
from pipeline.runs.console import Console
from pipeline.training.objectives.classification import Classification

SIDE, BATCH, CLASSES = 64, 64, tuple(map(str, range(10)))
ENCODER = EncoderConfig(
    num_latents=64, latent_dim=128, num_blocks=2, num_cross_attends=1, num_self_attends=2,
    num_self_heads=4,
)  # fmt: skip


def main() -> None:
    """Measure images a second, and the memory of this process for many rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=lambda text: int(float(text)))
    parser.add_argument("rows", type=lambda text: int(float(text)))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="perceiver-predictions-") as name:
        folder = Path(name)
        _make_images(folder / "images", given.images)
        bare = _bare(folder / "images", given.workers)
        with ray_session(None):
            ours = _ours(folder / "images", folder / "out", _image_card(), given.workers)
            print(f"{given.images} images of {SIDE}x{SIDE}, {given.workers} processes")
            for what, seconds in (("bare loop", bare), ("perceiver predict", ours)):
                print(f"{what:18} {given.images / seconds:8.0f} images/s in {seconds:.1f} s")
            for rows in (given.rows // 10, given.rows):
                _make_rows(folder / f"{rows}.parquet", rows)
                before = _memory()
                seconds = _ours(
                    folder / f"{rows}.parquet", folder / str(rows), _row_card(), given.workers
                )
                print(
                    f"{rows} rows: {rows / seconds:.0f} rows/s; peak memory of this process "
                    f"{before} MiB before, {_memory()} MiB after"
                )


def _ours(inputs: Path, to: Path, card: ModelCard, workers: int) -> float:
    torch.manual_seed(0)
    state = card.objective.build_model().state_dict()
    tensors = {name: value.numpy() for name, value in state.items()}
    model = Weights(card.to_json(), tensors, SETTINGS)
    request = Request("none", "none", Inputs([str(inputs)], card.media), to, workers)
    started = time.perf_counter()
    result = predict_to_folder(request, model, Console())
    assert not result["bad"], result["bad_files"]
    return time.perf_counter() - started


def _bare(folder: Path, workers: int) -> float:
    files = sorted(map(str, folder.iterdir()))
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_loop, [files[number::workers] for number in range(workers)], chunksize=1)
    return time.perf_counter() - started


@torch.inference_mode()
def _loop(files: list[str]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = _image_card().objective.build_model().eval()
    for start in range(0, len(files), BATCH):
        pixels = [np.asarray(Image.open(path)) for path in files[start : start + BATCH]]
        model(torch.from_numpy(np.stack(pixels))).softmax(-1).tolist()


def _image_card() -> ModelCard:
    config = ClassifierConfig(
        input=ImageInput(height=SIDE, width=SIDE, channels=3),
        adapter=PatchesConfig(patch_size=8),
        positions=FourierConfig(num_bands=8),
        encoder=ENCODER,
        num_classes=len(CLASSES),
    )
    return ModelCard(Classification(config, CLASSES), ImageFormat(height=SIDE, width=SIDE))


def _row_card() -> ModelCard:
    vocabulary = TableVocabulary(categories={}, mean=(0.0, 0.0), std=(1.0, 1.0))
    media = FittedTableFormat(numeric=("a", "b"), vocabulary=vocabulary)
    config = ClassifierConfig(
        input=model_input(media, pixel_mean=(), pixel_std=()),
        adapter=ColumnsConfig(num_channels=16),
        positions=None,
        encoder=ENCODER,
        num_classes=len(CLASSES),
    )
    return ModelCard(Classification(config, CLASSES), media)


def _make_images(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(buffer, "JPEG")
        (folder / f"{number:07d}.jpg").write_bytes(buffer.getvalue())


def _make_rows(path: Path, count: int) -> None:
    random = np.random.default_rng(0)
    pq.write_table(pa.table({name: random.normal(size=count) for name in "ab"}), path)


def _memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
    return peak


if __name__ == "__main__":
    main()
