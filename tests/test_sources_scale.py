"""Many files: no Python object for each, and the same plan whatever order they come in."""

import gc
import os
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from source_trees import data_config

from pipeline.preprocess.sources import list_sources, read_plan, write_plan
from pipeline.preprocess.sources.walk import walk

NUM_FILES = 20_000


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many")
    for number in range(NUM_FILES):
        folder = root / f"class-{number % 20}"
        if number < 20:
            folder.mkdir()
        os.close(os.open(folder / f"{number:05d}.jpg", os.O_CREAT))
    return root


def test_no_python_object_for_a_file_survives_listing_and_planning(many_files, tmp_path):
    config = data_config(many_files, validation=0.1)
    write_plan(list_sources(config), tmp_path / "first.parquet", 1000)  # imports and caches
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    source_table = list_sources(config)
    digest = source_table.state_digest
    shards = write_plan(source_table, tmp_path / "plan.parquet", 1000)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source_table.table.num_rows == NUM_FILES and shards == 20 and len(digest) == 64
    assert len(gc.get_objects()) - before < NUM_FILES / 100
    # The class numbers are here, 8 bytes each; a Python object takes some 50 bytes.
    assert held < 20 * NUM_FILES
    assert peak < 50 * 2**20


def test_one_flat_folder_is_listed_without_holding_its_entries(tmp_path):
    for number in range(NUM_FILES):
        os.close(os.open(tmp_path / f"{number:05d}", os.O_CREAT))
    config = data_config(tmp_path, target={"kind": "none"})
    list_sources(config)
    tracemalloc.start()
    for _ in walk(fsspec.filesystem("file"), str(tmp_path)):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


def test_the_order_of_the_file_system_does_not_matter(many_files, tmp_path, monkeypatch):
    config = data_config(many_files, validation=0.1)
    first = list_sources(config)
    plain = os.scandir

    class Backwards:
        def __init__(self, path):
            with plain(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("pipeline.preprocess.sources.walk.os.scandir", Backwards)
    second = list_sources(config)
    assert second.table.equals(first.table)
    assert second.state_digest == first.state_digest


def test_digests_do_not_see_how_arrow_cut_the_table(many_files):
    source_table = list_sources(data_config(many_files))
    pieces = [source_table.table.slice(start, 777) for start in range(0, NUM_FILES, 777)]
    cut = source_table.with_table(pa.concat_tables(pieces))
    assert cut.content_digest == source_table.content_digest
    assert cut.state_digest == source_table.state_digest


def test_a_plan_may_be_of_some_samples_alone(many_files, tmp_path):
    source_table = list_sources(data_config(many_files))
    part = source_table.with_table(source_table.table.slice(100, 250))
    assert write_plan(part, tmp_path / "p.parquet", 100) == 3
    counts = [len(read_plan(tmp_path / "p.parquet", number)) for number in range(3)]
    assert counts == [100, 100, 50]
    uri = os.fsdecode(source_table.table["uri"][100].as_py())
    assert read_plan(tmp_path / "p.parquet", 0)[0].uri == uri
