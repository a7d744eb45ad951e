"""Small files and locks of runs in object storage, on a real S3 server on the loopback."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.folders import Folder, folder_at, output_address
from pipeline.errors import UserError
from pipeline.runs import object_lock as module
from pipeline.runs.records import RunRecord, read_run_record, recorded_folder, write_run_record
from pipeline.runs.run_lock import run_lock
from pipeline.runs.storage import (
    create,
    download,
    exists,
    local_copy,
    names,
    read_bytes,
    remove,
    remove_folder,
    writable,
    write_bytes,
)
from shards.errors import ShardError


@pytest.fixture(params=["s3", "memory", "local"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return tmp_path / "here"
    if request.param == "memory":
        return folder_at(f"memory://{tmp_path.name}/files")
    return folder_at(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")


def test_files_are_written_read_listed_and_removed_alike_everywhere(
    folder: Folder, tmp_path: Path
) -> None:
    assert names(folder) == [] and not exists(folder)
    with pytest.raises(FileNotFoundError):
        read_bytes(folder / "a.json", 10)
    write_bytes(folder / "a.json", b"first")
    write_bytes(folder / "a.json", b"second")
    assert read_bytes(folder / "a.json", 6) == b"second"
    with pytest.raises(ShardError, match="more than 5 bytes"):
        read_bytes(folder / "a.json", 5)
    write_bytes(folder / "empty", b"")
    assert read_bytes(folder / "empty", 6) == b""
    remove(folder / "empty")
    assert create(folder / "b.json", b"mine")
    assert not create(folder / "b.json", b"theirs")
    assert read_bytes(folder / "b.json", 100) == b"mine"
    with writable(folder / "c.bin") as file:
        file.write_bytes(b"large")
    with local_copy(folder / "c.bin") as file:
        assert file.read_bytes() == b"large"
    download(folder / "c.bin", tmp_path / "copy")
    write_bytes(folder / "below" / "d.json", b"d")
    assert names(folder, ".json") == ["a.json", "b.json"]
    remove(folder / "a.json")
    remove(folder / "a.json")
    assert names(folder, ".json") == ["b.json"] and exists(folder / "below")
    remove_folder(folder)
    remove_folder(folder)
    assert not exists(folder)


def test_of_many_that_create_an_object_one_succeeds(s3_bucket: str, tmp_path: Path) -> None:
    path = folder_at(f"{s3_bucket}/{tmp_path.name}/one")
    created: list[int] = []

    def try_it(number: int) -> None:
        if create(path, b"%d" % number):
            created.append(number)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(read_bytes(path, 9))] == created


def test_a_bucket_that_is_missing_is_told_in_one_line(s3_bucket: str) -> None:
    path = folder_at("s3://no-such-bucket/a/b.json")
    with pytest.raises(UserError, match=r"s3://no-such-bucket/a/b.json: cannot be written \(") as e:
        write_bytes(path, b"")
    assert len(str(e.value).splitlines()) == 1


def test_records_name_only_folders_in_the_runs_own_prefix(s3_bucket: str, tmp_path: Path) -> None:
    run = folder_at(f"{s3_bucket}/{tmp_path.name}/digits")
    checkpoint = str(run / "train" / "checkpoints" / "step-00000001")
    write_run_record(run, RunRecord("train", {"a": 1}, {"checkpoint": checkpoint}, 1.0, done=True))
    record = read_run_record(run, "train")
    assert record is not None and record.fingerprint == {"a": 1}
    assert str(recorded_folder(record, run, "checkpoint")) == checkpoint
    for bad in (f"{s3_bucket}/other", str(run / ".." / "b"), "/etc", "nope://a", "http://h/a", 3):
        with pytest.raises(UserError, match="is not a folder in"):
            recorded_folder(RunRecord("train", {}, {"checkpoint": bad}), run, "checkpoint")


@pytest.mark.parametrize(
    "secret",
    ["s3://key:secret@bucket/a", "gs://bucket/a?token=secret", "abfs://c/a?sig=secret&se=2030"],
)
def test_an_output_with_a_secret_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(ValueError, match="holds a secret") as error:
        output_address(secret)
    assert "secret@" not in str(error.value) and "=secret" not in str(error.value)


HOLD = """
import sys, time
from pipeline.config.folders import folder_at
from pipeline.runs.run_lock import run_lock
with run_lock(folder_at(sys.argv[1]), "it", print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(s3_bucket: str, tmp_path: Path) -> Folder:
    return folder_at(f"{s3_bucket}/{tmp_path.name}/.train.lock")


@pytest.fixture
def held(lock: Folder) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_driver_gets_one_line_and_a_killed_one_holds_nothing(
    held: subprocess.Popen[str], lock: Folder
) -> None:
    told = rf"runs/a: another command is at work there \(process {held.pid} on .*\); wait until"
    started = time.monotonic()
    with pytest.raises(UserError, match=told) as error, run_lock(lock, "runs/a", print):
        pass
    assert len(str(error.value).splitlines()) == 1
    assert time.monotonic() - started < module.STALE_SECONDS
    held.kill()
    held.wait()
    started = time.monotonic()
    for _ in range(2):  # the second time it was released
        with run_lock(lock, "runs/a", print) as still_held:
            still_held()
    assert time.monotonic() - started < module.HEARTBEAT_SECONDS
    assert len(names(lock)) == 1


def test_a_holder_elsewhere_that_is_silent_is_replaced_and_stops_when_it_notices(
    lock: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    tables = iter(["there", "here", "here"])
    monkeypatch.setattr(module, "_process_table", lambda: next(tables, "here"))
    is_away, write = threading.Event(), module.write_bytes

    def unless_away(path: Folder, data: bytes) -> None:
        if is_away.is_set() and b'"there"' in data:
            raise UserError("the storage does not answer")
        write(path, data)

    monkeypatch.setattr(module, "write_bytes", unless_away)
    monkeypatch.setattr(module, "exists", lambda path: not (is_away.is_set()) and exists(path))
    with run_lock(lock, "runs/a", print) as first_still_held:
        with (  # its heartbeat is seen, so it is not replaced
            pytest.raises(UserError, match="another command is at work"),
            run_lock(lock, "runs/a", print),
        ):
            pass
        is_away.set()
        with run_lock(lock, "runs/a", print) as second_still_held:
            first_still_held()  # it cannot know yet
            is_away.clear()
            deadline = time.monotonic() + 10
            with pytest.raises(UserError, match="another one has taken over; this one stops"):
                while time.monotonic() < deadline:
                    first_still_held()
                    time.sleep(0.05)
            second_still_held()
