"""How the command line ends: errors that nobody foresaw, signals, and the causes that are shown."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from cli_commands import python

from cluster import notices
from cluster.errors import ClusterError
from cluster.interrupts import Terminated, sigterm_raises
from cluster.notices import signals_as_notices
from pipeline.cli.main import main
from pipeline.errors import GateRefusedError, UserError
from pipeline.runs.user_errors import find_user_error, raise_user_errors
from shards import ShardError

# --- anything else ---


@pytest.fixture
def defect(monkeypatch):
    """A verb's own module fails in a way that nobody foresaw."""

    def set_error(error: BaseException) -> None:
        def broken(path: str) -> None:
            raise error

        monkeypatch.setattr("pipeline.preprocess.inspect_shards.inspect_shards", broken)

    return set_error


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence():
    command = [sys.executable, "-m", "pipeline", "config", "images"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_an_unexpected_error_exits_1_in_one_line(defect, capsys):
    defect(ZeroDivisionError("division\nby zero"))
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == (
        "perceiver inspect: unexpected ZeroDivisionError: division by zero; "
        "--debug shows the traceback\n"
    )
    assert main(["inspect", "--debug", "x"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "in broken" in printed
    assert printed.splitlines()[-1].endswith("unexpected ZeroDivisionError: division by zero")


def test_a_removed_working_directory_is_named_before_the_error(
    defect, capsys, monkeypatch, tmp_path
):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    defect(UserError("MLflow does not answer"))
    assert main(["inspect", "x"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "working directory of this command has been removed" in first and "--temp-dir" in first
    assert second.endswith("MLflow does not answer")


def test_a_refusal_of_the_gate_exits_1_and_an_interrupt_130(defect, capsys):
    defect(GateRefusedError("0.5 does not beat 0.6"))
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == "perceiver inspect: 0.5 does not beat 0.6\n"
    defect(KeyboardInterrupt())
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "perceiver inspect: interrupted\n"


def test_sigterm_ends_a_verb_as_an_interrupt_does(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def killed(path: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("pipeline.preprocess.inspect_shards.inspect_shards", killed)
    assert main(["inspect", "x"]) == 143
    assert capsys.readouterr().err == "perceiver inspect: terminated (SIGTERM)\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_told_where_native_code_makes_a_plain_interrupt_of_it(monkeypatch, capsys):
    def killed(path: str) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("pipeline.preprocess.inspect_shards.inspect_shards", killed)
    assert main(["inspect", "x"]) == 143
    assert capsys.readouterr().err == "perceiver inspect: terminated (SIGTERM)\n"


def test_signals_at_once_are_one_notice_and_a_later_one_ends_the_verb(monkeypatch):
    """`ray job stop` signals the command and its child, to which the command passes its own on."""
    told: list[int] = []
    with pytest.raises(Terminated), sigterm_raises(), signals_as_notices(told.append):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        assert told == [signal.SIGTERM]
        told.append(0)
        monkeypatch.setattr(notices, "SAME_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert told == [signal.SIGTERM, 0]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_end_a_session_of_ray_and_leave_nothing(name):
    """SIGINT comes while Ray starts, and waits for it; SIGTERM after Ray has set its own way."""
    # Too long for Ray's sockets, and not for multiprocessing's.
    with tempfile.TemporaryDirectory(prefix="a-rather-long-name-", dir="/tmp") as temporary:
        done = python(SESSION, TMPDIR=temporary, SIGNAL=name)
    wanted = {"SIGINT": "KeyboardInterrupt", "SIGTERM": "Terminated"}[name]
    assert done.stdout.splitlines()[-1:] == [f"{wanted} False []"], done.stderr


SESSION = """
import os, signal, threading, time
from pathlib import Path
import ray
from cluster.interrupts import Terminated, sigterm_raises
from cluster.ray_session import ray_session

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def folders():
    return list(Path("/tmp").glob(f"perceiver-ray-{os.getpid()}-*"))

def at_start():
    while not any(folder.glob("session_*") for folder in folders()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

if os.environ["SIGNAL"] == "SIGINT":
    threading.Thread(target=at_start).start()
try:
    with sigterm_raises(), ray_session(None):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
except KeyboardInterrupt as error:
    print(type(error).__name__, ray.is_initialized(), folders())
"""


def test_what_a_verb_and_its_children_print_goes_to_the_log(tmp_path):
    code = f"""
import os, subprocess, sys
from pathlib import Path
from pipeline.runs.console import logged
with logged({{"as_json": True}}, Path({str(tmp_path)!r}) / "logs", "train") as console:
    print("from python")
    os.write(2, b"from native code\\n")
    subprocess.run(["echo", "from a child"])
    console.say("for a person")
    console.result({{"a": 1}})
print("after")
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"a": 1}\nafter\n'
    assert done.stderr == "for a person\n"
    (log,) = (tmp_path / "logs").iterdir()
    assert log.name.startswith("train-")
    assert sorted(log.read_text().splitlines()) == [
        "from a child",
        "from native code",
        "from python",
    ]


# --- causes ---


def wrapped(inner: Exception, how: str) -> Exception:
    outer = RuntimeError("what a framework made of it")
    if how == "from":
        outer.__cause__ = inner
    elif how == "cause":
        outer.cause = inner
    else:
        outer.worker_failures = {0: RuntimeError("another"), 1: wrapped(inner, "cause")}
    return outer


@pytest.mark.parametrize("how", ["from", "cause", "worker_failures"])
@pytest.mark.parametrize("kind", [UserError, ShardError, ClusterError, GateRefusedError])
def test_the_cause_that_a_user_can_mend_is_found(kind, how):
    inner = kind("mend this")
    assert find_user_error(inner) is inner
    assert find_user_error(wrapped(wrapped(inner, how), "from")) is inner
    with pytest.raises(kind, match="mend this"), raise_user_errors():
        raise wrapped(inner, how)


def test_without_such_a_cause_the_error_stays():
    circle = RuntimeError("itself")
    circle.__cause__ = circle
    assert find_user_error(circle) is None
    with pytest.raises(ZeroDivisionError), raise_user_errors():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/a"), "/a: the command cannot write or read (No"),
        (PermissionError(13, "Permission denied", "/a"), "/a: the command cannot write or read (P"),
        (MemoryError(), "the command ran out of memory"),
        (wrapped(MemoryError(), "worker_failures"), "worker 1 ran out of memory"),
    ],
)
def test_what_a_machine_lacks_is_told_without_a_traceback(defect, capsys, error, message):
    defect(error)
    assert main(["inspect", "x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"perceiver inspect: {message}")
    assert "unexpected" not in line


def test_an_error_of_mlflow_is_no_defect_of_ours(defect, capsys):
    from mlflow.exceptions import MlflowException

    defect(MlflowException("API request to http://u:secret@h/api failed"))
    assert main(["inspect", "x"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(
        "perceiver inspect: MLflow does not answer, or refuses what it is asked"
    )
    assert "secret" not in printed


def test_a_defect_in_a_worker_is_told_as_itself(defect, capsys):
    from ray.train import WorkerGroupError

    defect(WorkerGroupError("what Ray made of it", {0: ZeroDivisionError("division by zero")}))
    assert main(["inspect", "x"]) == 1
    assert "unexpected ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_an_error_of_a_process_that_reads_samples_is_told_without_its_traceback():
    from torch._utils import ExceptionWrapper

    try:
        raise ShardError("shard-00000.tar: gone; run verify")
    except ShardError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ShardError) as caught:
        wrapper.reraise()
    assert "Traceback" in str(caught.value)
    assert str(find_user_error(caught.value)) == "shard-00000.tar: gone; run verify"
