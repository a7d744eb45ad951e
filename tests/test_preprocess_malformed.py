"""More than 500 malformed files: none stops the work, each is in quarantine with its reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
from malformed import write_corpus
from PIL import Image

from pipeline.config.tree import Config
from pipeline.preprocess.preprocess import preprocess, retry_quarantine
from pipeline.runs.console import Console
from shards import ShardReader, ShardSet, read_quarantine, verify


@pytest.mark.usefixtures("ray_cluster")
def test_a_malformed_corpus_is_set_aside_file_by_file_and_taken_up_after_a_fix(
    make_config: Callable[..., Config], tmp_path: Path, console: Console
) -> None:
    raw = tmp_path / "raw"
    corpus = write_corpus(raw)
    assert len(corpus) > 500
    for label in ("good", "fine"):
        (raw / label).mkdir()
        for number in range(5):
            Image.new("L", (28, 28), 50 * number).save(raw / label / f"{number}.png")
    config = make_config(
        tmp_path / "out", f"data.train={raw}", "data.validation=null", "data.max_bad_fraction=1.0",
        "data.samples_per_shard=200", "data.image.max_pixels=1000000",
    )  # fmt: skip
    result = preprocess(config, console)
    rows = read_quarantine(Path(result["shards"]) / "quarantine.parquet")
    made = sources_in(result["shards"])
    set_aside = {row.source_uri for row in rows}
    assert len(rows) > 400 and len(rows) == len(set_aside) == result["num_quarantined"]
    assert not made & set_aside
    # Hidden files are nobody's samples.
    seen = [path for path in corpus if not path.name.startswith(".")]
    here = {uri(path, raw) for path in [*seen, *raw.glob("good/*"), *raw.glob("fine/*")]}
    assert made | set_aside == here
    assert all(row.reason and "\n" not in row.reason for row in rows)
    assert [row for row in rows if str(tmp_path) in row.reason + row.traceback] == []
    assert verify(result["shards"]) == []

    broken = next(path for path in corpus if path.is_file() and uri(path, raw) in set_aside)
    Image.new("L", (28, 28), 9).save(broken, "PNG")
    mended = retry_quarantine(result["shards"], console)
    assert mended["num_quarantined"] == len(rows) - 1
    assert sources_in(result["shards"]) == made | {uri(broken, raw)}


def uri(path: Path, raw: Path) -> str:
    name = f"train/{path.relative_to(raw)}"
    return name.encode(errors="backslashreplace").decode()


def sources_in(shards: str) -> set[str]:
    reader = ShardReader(ShardSet.open(shards), "train")
    return {reader.read(number).source_uri for number in range(len(reader))}
