"""The sandbox: what decoders do in it stays in it."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.media import MediaError
from pipeline.media.sandbox.child import SHARED_BYTES
from pipeline.media.sandbox.sandbox import Sandbox, SandboxError

MISBEHAVE = "sandbox_functions:misbehave"


def misbehaving(sandbox: Sandbox, how: str, samples: int = 0, **arguments: object) -> list[int]:
    """The numbers of the good samples that came before."""
    values = {"how": how, "samples": samples, "arguments": arguments}
    return [int(members["number"]) for members in sandbox.run({}, values)]


def serves(sandbox: Sandbox) -> bool:
    return misbehaving(sandbox, "nothing", samples=2) == [0, 1]


# --- what goes in and comes out ---


@pytest.mark.parametrize(
    "size", [0, 1, 90_000, SHARED_BYTES - 2000, SHARED_BYTES, SHARED_BYTES + 1, 40 << 20]
)
def test_bytes_survive_both_ways(size):
    data = os.urandom(size)
    with Sandbox("sandbox_functions:echo", {}) as sandbox:
        for sent in (data, data[::-1]):
            parts = {"audio": (b"", ""), "image": (sent, "a.jpg"), "text": (b"abc", "")}
            found = list(sandbox.run(parts, {"copies": 3}))
            assert [(m["audio"], m["text"]) for m in found] == [(b"", b"abc")] * 3
            assert all(members["image"] == sent for members in found)
            # Copies: the child may still write to the memory that both share.
            assert {type(value) for members in found for value in members.values()} == {bytes}


def test_names_settings_and_values_survive_as_they_are():
    name = b'caf\xe9\n"../x.jpg\xff'.decode(errors="surrogateescape")
    settings = {"deep": {"list": [1, 2.5, None, "é"]}}
    with Sandbox("sandbox_functions:echo", settings) as sandbox:
        (members,) = sandbox.run({"image": (b"x", name)}, {"title": "\ud800 ok", "count": 3})
    told = (0, settings, {"image": name}, {"title": "\ud800 ok", "count": 3})
    assert members["told"] == repr(told).encode()


def test_samples_come_one_by_one_in_order():
    with Sandbox("sandbox_functions:echo", {}) as sandbox:
        results = sandbox.run({"video": (b"x" * 3_000_000, "a.mp4")}, {"copies": 20})
        assert next(results)["told"].startswith(b"(0,")
        assert [int(members["told"].split(b",")[0][1:]) for members in results] == [*range(1, 20)]


def test_no_sample_at_all_is_an_answer():
    with Sandbox("sandbox_functions:echo", {}) as sandbox:
        assert list(sandbox.run({}, {"copies": 0})) == []


def test_one_child_serves_many_files_up_to_max_requests():
    with Sandbox("sandbox_functions:count", {}, max_requests=3) as sandbox:
        answers = [next(iter(list(sandbox.run({}, {})))) for _ in range(7)]
    assert [int(answer["count"]) for answer in answers] == [1, 2, 3, 1, 2, 3, 1]
    assert len({answer["pid"] for answer in answers}) == 3


def test_samples_given_up_halfway_do_not_reach_the_next_file():
    with Sandbox("sandbox_functions:echo", {}) as sandbox:
        abandoned = sandbox.run({"image": (b"old" * 1_000_000, "")}, {"copies": 50})
        assert next(abandoned)["image"].startswith(b"old")
        with pytest.raises(RuntimeError, match="still at another file"):
            next(sandbox.run({}, {}))
        abandoned.close()
        (members,) = sandbox.run({"image": (b"new", "")}, {})
        assert members["image"] == b"new"


def test_the_child_is_alone_and_light():
    with Sandbox("sandbox_functions:limits", {}) as sandbox:
        (told,) = sandbox.run({}, {})
    assert told == {"core": b"0", "session": b"True", "torch": b"False"}


def test_what_libraries_print_and_read_does_not_reach_the_pipes(capfd):
    with Sandbox(MISBEHAVE, {}) as sandbox:
        assert misbehaving(sandbox, "print", samples=1) == [0]
        assert misbehaving(sandbox, "read standard input", samples=1) == [0]
        assert serves(sandbox)
    assert capfd.readouterr() == ("", "")


# --- refusals and faults ---


def test_a_refusal_comes_back_with_its_reason_and_place_and_the_child_goes_on():
    with Sandbox(MISBEHAVE, {}) as sandbox:
        assert serves(sandbox)
        pid = sandbox.child_pid
        with pytest.raises(MediaError, match=r"^too blurred for anyone$") as caught:
            misbehaving(sandbox, "refuse", samples=3)
        assert serves(sandbox) and sandbox.child_pid == pid
    lines = caught.value.trace.splitlines()
    assert [line.split(" in ")[1] for line in lines] == ["misbehave", "_refuse"]
    assert all(line.startswith("sandbox_functions.py:") for line in lines)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("index error", "^IndexError: list index out of range$"),
        ("address", "^OSError: Error opening <object object at 0x…>: no$"),
        ("segfault", r"^the decoder crashed \(SIGSEGV\)$"),
        ("leave", r"^the decoder crashed \(exit 3\)$"),
    ],
)
def test_a_fault_is_the_files_alone(how, reason):
    with Sandbox(MISBEHAVE, {}) as sandbox:
        for _ in range(2):
            with pytest.raises(MediaError, match=reason):
                misbehaving(sandbox, how)
            assert serves(sandbox)


@pytest.mark.parametrize("name", ["SIGABRT", "SIGKILL", "SIGBUS", "SIGFPE"])
def test_the_signal_is_named(name):
    with (
        Sandbox(MISBEHAVE, {}) as sandbox,
        pytest.raises(MediaError, match=rf"^the decoder crashed \({name}\)$"),
    ):
        misbehaving(sandbox, "signal", name=name)


def test_samples_before_a_crash_come_once_and_then_the_reason():
    with Sandbox(MISBEHAVE, {}) as sandbox:
        assert serves(sandbox)  # so that the crash is tried again in a child that saw nothing else
        results = sandbox.run({}, {"how": "segfault", "samples": 3})
        assert [int(next(results)["number"]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(MediaError, match="SIGSEGV"):
            next(results)


def test_a_child_killed_between_files_is_replaced_unseen():
    with Sandbox(MISBEHAVE, {}) as sandbox:
        assert serves(sandbox)
        killed = sandbox.child_pid
        os.kill(killed, signal.SIGKILL)
        assert serves(sandbox) and sandbox.child_pid != killed


@pytest.mark.parametrize("how", ["spin", "sleep"])
def test_a_hang_ends_in_time(how):
    started = time.monotonic()
    with Sandbox(MISBEHAVE, {}, seconds=0.5) as sandbox:
        with pytest.raises(MediaError, match=r"^decoding took more than 0.5 s$"):
            misbehaving(sandbox, how, samples=2)
        assert serves(sandbox)
    assert time.monotonic() - started < 10


def test_the_time_is_each_results_not_the_files():
    with Sandbox("sandbox_functions:busy", {"seconds": 0.1}, seconds=1) as sandbox:
        assert len(list(sandbox.run({}, {"samples": 12}))) == 12


@pytest.mark.parametrize("how", ["allocate", "allocate and wrap"])
def test_memory_is_bounded(how):
    with Sandbox(MISBEHAVE, {}, memory_bytes=400 << 20) as sandbox:
        assert misbehaving(sandbox, how, samples=1, mebibytes=200) == [0]
        with pytest.raises(MediaError, match=r"^decoding took more than 400 MiB$"):
            misbehaving(sandbox, how, samples=1, mebibytes=500)
        assert serves(sandbox)


def test_a_file_larger_than_the_memory_is_refused():
    with Sandbox("sandbox_functions:echo", {}, memory_bytes=200 << 20) as sandbox:
        with pytest.raises(MediaError, match=r"^decoding took more than 200 MiB$"):
            list(sandbox.run({"video": (bytes(250 << 20), "a.mp4")}, {}))
        assert len(list(sandbox.run({"video": (b"x", "a.mp4")}, {}))) == 1


def test_a_missing_package_is_no_fault_of_the_file():
    with (
        Sandbox(MISBEHAVE, {}) as sandbox,
        pytest.raises(SandboxError, match="No module named 'no_such_package'") as caught,
    ):
        misbehaving(sandbox, "import nothing")
    assert "\n" not in str(caught.value) and "_import_nothing" in str(caught.value)


def test_a_child_that_cannot_start_is_no_fault_of_the_file(monkeypatch):
    def no_memory(*args, **options):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with Sandbox(MISBEHAVE, {}) as sandbox:
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", no_memory)
            told = f"^{MISBEHAVE}: no child started: {os.strerror(errno.ENOMEM)}$"
            with pytest.raises(SandboxError, match=told):
                misbehaving(sandbox, "nothing")
        assert serves(sandbox)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("sandbox_functions:no_such", "has no attribute 'no_such'"),
    ],
)
def test_a_function_that_is_not_there_is_named(function, reason):
    with Sandbox(function, {}) as sandbox, pytest.raises(SandboxError, match=reason):
        list(sandbox.run({}, {}))


# --- no process is left ---


def test_closing_leaves_no_process():
    with Sandbox(MISBEHAVE, {}) as sandbox:
        assert serves(sandbox)
        pid = sandbox.child_pid
    assert not psutil.pid_exists(pid)
    assert serves(sandbox)  # a closed sandbox starts again
    sandbox.close()


@pytest.mark.parametrize("at", ["rest", "spin"])
def test_no_child_outlives_a_killed_parent(at, tmp_path):
    told = tmp_path / "pid"
    program = f"""
import time
from pathlib import Path
from pipeline.media.sandbox.sandbox import Sandbox
sandbox = Sandbox({MISBEHAVE!r}, {{}})
list(sandbox.run({{}}, {{"how": "nothing"}}))
Path({str(told)!r}).write_text(str(sandbox.child_pid))
if {at!r} == "spin":
    list(sandbox.run({{}}, {{"how": "spin"}}))
time.sleep(60)
"""
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, str(Path(__file__).parent)])
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}
    )
    until(lambda: told.exists() and told.read_text())
    child = psutil.Process(int(told.read_text()))
    if at == "spin":
        until(lambda: child.cpu_times().user > 0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def until(true) -> None:
    """Wait, ten seconds at most, until something is so."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
