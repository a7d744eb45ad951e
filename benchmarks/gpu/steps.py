"""The steps of the whole way: photographs, shards, trainings, the registry, predictions, tables."""

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.schedule import Figures, Place, Run, Step, StepError
from benchmarks.pictures import write_folder
from pipeline.runs.mlflow_client import client

STAGES = (0, 2, 3)
TESTS = (
    "tests/test_separable_triton.py",
    "tests/test_residual_stream.py",
    "tests/test_fp8.py",
    "tests/test_shards_loader_refusals.py",
)
_MODEL = "gpu"
_SMALL = (
    "model.adapter={kind: patches, patch_size: 8}",
    "model.positions={num_bands: 4}",
    "model.encoder={num_latents: 8, latent_dim: 32, num_blocks: 1, num_cross_attends: 1, "
    "num_self_attends: 2, num_cross_heads: 1, num_self_heads: 4}",
    "model.decoder=null",
    "data.image.height=32",
    "data.image.width=32",
    "training.batch_size=16",
    "training.loader_workers=0",
    "training.precision=float32",
    "cluster.use_gpu=false",
    "cluster.cpus_per_worker=1",
    "tracking.examples=2",
    "training.log_steps=2",
)
_LARGE = (
    "training.batch_size=64",
    "training.precision=bf16",
    "training.loader_workers=8",
    "cluster.use_gpu=true",
    "cluster.cpus_per_worker=4",
    "training.log_steps=5",
)


def config_of(place: Place) -> list[str]:
    """Return the words of the configuration: Perceiver IO's model of ImageNet, or a small one."""
    return [
        "perceiver-io-imagenet",
        f"output={place.folder / 'runs'}",
        f"shards={place.folder / 'set'}",
        f"data.train={place.folder / 'photographs'}",
        "data.test=null",
        "data.validation=0.05",
        "data.samples_per_shard=500",
        "training.epochs=2",
        "training.gradient_accumulation_steps=1",
        "training.optimizer=adamw",
        "training.eps=1e-8",
        "training.learning_rate=1e-4",
        "training.schedule={warmup_epochs: 0}",
        "training.augment={flip: true, crop_area: [0.3, 1.0]}",
        "training.checkpoint_steps=null",
        "cluster.address=null",
        "cluster.num_workers=1",
        f"tracking.uri=sqlite:///{place.folder / 'mlflow.db'}",
        "tracking.system_metrics=false",
        f"registry.model_name={_MODEL}",
        *(_SMALL if place.is_small else _LARGE),
    ]


def _tests(place: Place, run: Run) -> Figures:
    command = ["-m", "pytest", "-n0", "-q", "-rA", "--no-header", "-p", "no:cacheprovider"]
    output = run([*command, *TESTS, "-k", "gpu or equal_bits or residual"])
    lines = output.splitlines()
    return {
        "passed": sum(line.startswith("PASSED") for line in lines),
        "skipped": sum(line.startswith("SKIPPED") for line in lines),
    }


def _preprocess(place: Place, run: Run) -> Figures:
    count = 60 if place.is_small else 6000
    write_folder(place.folder / "photographs", count)
    found = _json(run(["-m", "pipeline", "preprocess", *config_of(place), "--json"]))
    return {"files": count, "files_per_second": count / found["seconds"], "digest": found["digest"]}


def _train(stage: int) -> Step:
    def train(place: Place, run: Run) -> Figures:
        words = [*config_of(place), f"name=stage-{stage}", f"training.zero_stage={stage}"]
        found = _json(run(["-m", "pipeline", "train", *words, "--json"]))
        return {"run_id": found["run_id"], "train_loss": found["metrics"]["train_loss"],
                "val_accuracy": found["metrics"]["val_accuracy"],
                **_speed(place, found["run_id"])}  # fmt: skip

    return Step(f"train-{stage}", train, 100.0)


def _speed(place: Place, run_id: str) -> Figures:
    """Return the medians over the logged steps but the first, which builds what is built once."""
    mlflow_client = client(f"sqlite:///{place.folder / 'mlflow.db'}")
    found: Figures = {}
    for name in ("samples_per_second", "data_wait_share", "mfu", "device_memory_peak_gb"):
        values = [point.value for point in mlflow_client.get_metric_history(run_id, name)][1:]
        if values:
            found[name] = statistics.median(values)
    return found


def _step(stage: int) -> Step:
    """Return the step that times a training's beside a bare torch loop's, on the same batches."""

    def measure(place: Place, run: Run) -> Figures:
        model, sizes = ("digits", ("8", "2")) if place.is_small else ("imagenet", ("64", "8"))
        words = ["--model", model, "--batch-size", sizes[0], "--steps", sizes[1], "--rounds", "3"]
        words += ["--stage", str(stage)]
        found = _json(run(["-m", "pipeline", "bench", "train", "--no-lightning", "--device",
                           place.device, *words, "--json"]))  # fmt: skip
        ours = next(row for row in found["rows"] if row["label"] == "ours")
        rate = float(sizes[0]) * 1000 / ours["ms_per_step"]
        return {"images_per_second": rate, "vs_bare": ours["vs_bare"]}

    return Step(f"step-{stage}", measure, 60.0)


def _promote(place: Place, run: Run) -> Figures:
    words = ["--tracking-uri", f"sqlite:///{place.folder / 'mlflow.db'}"]
    trained = json.loads(_record(place, "stage-0"))["result"]["run_id"]
    found = _json(run(["-m", "pipeline", "promote", trained, *words, "--json"]))
    return {"model": found["model_uri"], "accuracy": found["accuracy"]}


def _predict(place: Place, run: Run) -> Figures:
    words = ["--tracking-uri", f"sqlite:///{place.folder / 'mlflow.db'}"]
    photographs, to = str(place.folder / "photographs"), str(place.folder / "predictions")
    began = time.monotonic()
    found = _json(run(["-m", "pipeline", "predict", f"models:/{_MODEL}@champion", photographs,
                       "--to", to, "--workers", "1", "--fresh", *words, "--json"]))  # fmt: skip
    seconds = time.monotonic() - began  # with the start of Ray and of the model
    return {"files": found["files"], "bad": found["bad"],
            "files_per_second": found["files"] / seconds}  # fmt: skip


def _table(place: Place, run: Run) -> Figures:
    return _model_table(place, run, [])


def _table_fp8(place: Place, run: Run) -> Figures:
    return _model_table(place, run, ["--precision", "fp8", "--vs", "none"])


def _model_table(place: Place, run: Run, more: Sequence[str]) -> Figures:
    words = ["--quick", "--device", place.device, *more]
    if place.is_small:
        words += ["--preset", "io-imagenet-conv", "--no-compile"]
        words += [] if more else ["--vs", "none"]
    found = _json(run(["-m", "pipeline", "bench", "model", *words, "--json"]))
    rows = {
        f"{row['work']}, {row['label']}{', compiled' * row['compiled']}": row["images_per_second"]
        for row in found["rows"]
    }
    return {"agreement": found["agreement"], **rows}


def _record(place: Place, name: str) -> str:
    return (place.folder / "runs" / name / "stages" / "train.json").read_text(encoding="utf-8")


def _json(output: str) -> Any:
    lines = output.strip().splitlines()
    if not lines:
        raise StepError("the command wrote nothing")
    return json.loads(lines[-1])


STEPS: Sequence[Step] = (
    Step("tests", _tests, 90.0),
    Step("preprocess", _preprocess, 60.0),
    *map(_train, STAGES),
    *map(_step, STAGES),
    Step("promote", _promote, 60.0),
    Step("predict", _predict, 60.0),
    Step("table", _table, 180.0),
    Step("table-fp8", _table_fp8, 120.0),
)
