"""The command line: what it prints, where, and its exit status."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from pipeline.cli.main import main
from pipeline.cli.parser import parse
from pipeline.config.load import load_config
from pipeline.errors import GateRefusedError, UserError
from pipeline.media.sandbox.sandbox import protections
from pipeline.runs.user_errors import find_user_error, raise_user_errors
from shards import Sample, ShardError, publish, write_shard

HEAVY = {"ray", "torch", "mlflow", "deepspeed", "pydantic", "numpy", "pandas", "pyarrow", "rich"}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def perceiver(*args: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, with temporary files below it."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *args],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**clean, "TMPDIR": str(temporary), **environment},
    )


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def make_set(folder: Path) -> Path:
    """A published shard set of two samples."""
    samples = [Sample(f"k{n}", {"cls": b"0"}, n, f"train/{n}.png", "0" * 64) for n in range(2)]
    write_shard(folder / "staging", 0, "train", samples)
    publish(
        folder / "staging", folder / "set", numbers=[0], config={}, input_digest="0" * 64,
        classes=("cat", "owl"),
    )  # fmt: skip
    return folder / "set"


# --- lightness ---


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(args):
    code = f"""
import sys
import tempfile
import time
from pipeline.cli.main import main
try:
    main({args!r})
except SystemExit as end:
    assert end.code == 0, end.code
found = {HEAVY!r} & set(sys.modules)
assert not found, found
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "perceiver" in done.stdout


def test_reading_a_configuration_imports_no_engine(tmp_path):
    code = """
import sys
import tempfile
import time
from pipeline.cli.main import main
assert main(["config", "digits"]) == 0
found = {"ray", "torch", "mlflow", "deepspeed"} & set(sys.modules)
assert not found, found
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


# --- results ---


@pytest.mark.parametrize("name", ["digits", "audio", "imagenet"])
def test_config_prints_yaml_that_reads_back_equal(tmp_path, capsys, name):
    assert main(["config", name, "seed=3", "training.learning_rate=1e-4"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    expected = load_config(name, ["seed=3", "training.learning_rate=1e-4"])
    assert load_config(str(tmp_path / "printed.yaml")) == expected
    assert main(["config", str(tmp_path / "printed.yaml")]) == 0
    assert capsys.readouterr().out == printed


def test_config_as_json_is_the_tree_and_what_the_sandbox_holds(capsys):
    assert main(["config", "--json", "digits", "seed=3"]) == 0
    found = json.loads(capsys.readouterr().out)
    here = protections()
    held = {name: layers for name, layers in here.layers.items() if layers}
    assert found.pop("sandbox") == {"held": held, "missing": here.missing}
    assert found == load_config("digits", ["seed=3"]).tree()


def test_config_says_what_the_sandbox_holds_and_what_not(capsys):
    assert main(["config", "digits"]) == 0
    told = capsys.readouterr().out
    here = protections()
    for name, layers in here.layers.items():
        expected = ", ".join(layers) or f"NOT HELD ({here.missing[name]})"
        assert f"#   {name}: {expected}\n" in told


@pytest.mark.parametrize(
    "args",
    [
        ["config", "digits", "--json", "seed=3"],
        ["config", "--json", "digits", "seed=3"],
        ["config", "digits", "seed=3", "--json"],
        ["config", "--json", "--", "digits", "seed=3"],
        ["config", "digits", "--json", "--", "seed=3"],
        ["config", "digits", "--json", "--debug", "seed=3"],
    ],
)
def test_options_may_stand_anywhere_among_the_overrides(capsys, args):
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 3


def parsed(*args: str) -> dict:
    return vars(parse(list(args)))


def test_every_verb_takes_its_options_in_any_place():
    for verb in ("preprocess", "train", "tune"):
        found = parsed(verb, "x.yaml", "a.b=1", "--fresh", "c=2", "--json", "d=3")
        assert (found["overrides"], found["fresh"]) == (["a.b=1", "c=2", "d=3"], True)
        assert found["json"]
    found = parsed("predict", "models:/a@b", "1.png", "--to", "x.csv", "2.png", "--json", "3.png")
    assert (found["inputs"], str(found["to"])) == (["1.png", "2.png", "3.png"], "x.csv")
    assert parsed("promote", "--json", "r", "--name", "n")["run_id"] == "r"
    assert parsed("inspect", "s", "--json")["shards"] == "s"


def test_behind_two_dashes_nothing_is_an_option():
    found = parsed("predict", "models:/a@b", "--json", "--", "--to", "-x.png")
    assert (found["inputs"], found["to"]) == (["--to", "-x.png"], None)
    found = parsed("submit", "--no-wait", "--", "train", "c.yaml", "--json", "a=1")
    assert (found["command"], found["json"]) == (["train", "c.yaml", "--json", "a=1"], False)


@pytest.mark.parametrize("args", [["train", "x.yaml", "--jsno", "a=1"], ["inspect", "a", "b"]])
def test_unknown_options_and_surplus_arguments_are_refused(capsys, args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_inspect_and_verify_a_shard_set(tmp_path, capsys):
    shards = str(make_set(tmp_path))
    assert main(["inspect", "--json", shards]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["splits"]["train"]["samples"] == 2
    assert found["class_counts"] == {"train": {"cat": 1, "owl": 1}}
    assert "owl" in told.err
    assert main(["verify", "--json", shards]) == 0
    assert json.loads(capsys.readouterr().out) == {"shards": shards, "problems": []}
    assert main(["verify", shards]) == 0
    assert capsys.readouterr().out.strip().endswith(found["digest"])


def test_inspect_shows_a_person_tables(tmp_path, capsys):
    assert main(["inspect", str(make_set(tmp_path))]) == 0
    told = capsys.readouterr()
    assert "digest " in told.out and "owl" in told.out and "quarantined files: 0" in told.out
    assert told.err == ""


def test_verify_names_damage_and_fails(tmp_path, capsys):
    shards = make_set(tmp_path)
    tar = shards / "shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    assert main(["verify", str(shards)]) == 1
    assert capsys.readouterr().out.startswith("shard-00000.tar: ")
    assert main(["verify", "--json", str(shards)]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["file"] == "shard-00000.tar"


# --- the input is at fault ---


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["config", "digitz"], "perceiver config: digitz: no such configuration file"),
        (["config", "digits", "training.epoch=3"], "training.epoch: unknown key; did you mean"),
        (["config", "digits", "training.epochs"], "'training.epochs': overrides are section.field"),
        (["config", "digits", "seed=-1"], "perceiver config: digits: seed: is -1; must be greater"),
        (["verify", "raw"], "raw: no manifest.json: not a shard set"),
        (["inspect", "raw"], "raw: no manifest.json: not a shard set"),
        (
            ["inspect", "nowhere"],
            "nowhere: no manifest.json: there is nothing here; check the path",
        ),
        (["inspect", "raw/a.txt"], "no manifest.json"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, monkeypatch, capsys, args, told):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"perceiver {args[0]}: ") and told in line
    assert files_in(tmp_path) == ["raw/a.txt"]


def test_every_problem_of_a_configuration_has_its_line(capsys):
    assert main(["config", "digits", "seed=-1", "trainig.epochs=2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("perceiver config: digits: ") for line in lines)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["preprocess", "digits", "data.train=missing", "output=out"],
            "perceiver preprocess: data.train=missing: no such folder",
        ),
        (["train", "digits", "training.epoch=3", "output=out"], "did you mean 'epochs'?"),
        (["predict", "models:/a@b", "raw", "--output", "out"], "out/mlflow.db: no such database; "),
        (["promote", "abc", "--output", "out"], "out/mlflow.db: no such database; name MLflow's"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_leaves_nothing_behind(tmp_path, args, told):
    done = perceiver(*args, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"perceiver {args[0]}: ") and told in line
    assert files_in(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_a_cluster_that_does_not_answer_is_told_and_leaves_nothing_behind(digit_images, tmp_path):
    with socket.socket() as silent:  # bound, but listening to nobody
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = perceiver(
            "preprocess", "digits", f"data.train={digit_images / 'train'}", "data.validation=null",
            "data.test=null", f"cluster.address={address}", folder=tmp_path,
            RAY_py_gcs_connect_timeout_s="5", RAY_gcs_rpc_server_connect_timeout_s="1",
        )  # fmt: skip
    assert done.returncode == 2
    assert f"cluster.address={address}: no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_a_run_folder_that_was_there_stays(tmp_path):
    kept = tmp_path / "out" / "digits" / "stages" / "train.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    done = perceiver("preprocess", "digits", "data.train=missing", "output=out", folder=tmp_path)
    assert done.returncode == 2
    assert kept.is_file()


@pytest.mark.parametrize("args", [[], ["fly"], ["train"], ["predict", "models:/a@b"]])
def test_wrong_usage_exits_2(capsys, args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert "usage: perceiver" in capsys.readouterr().err


def test_debug_shows_the_traceback_too(capsys):
    assert main(["config", "--debug", "digitz"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and told.splitlines()[-1].startswith("perceiver config: digitz: ")


# --- anything else ---


@pytest.fixture
def defect(monkeypatch):
    """A verb's own module fails in a way that nobody foresaw."""

    def set_error(error: BaseException) -> None:
        def broken(path: str) -> None:
            raise error

        monkeypatch.setattr("pipeline.preprocess.inspect_shards.inspect_shards", broken)

    return set_error


def test_an_unexpected_error_exits_1_in_one_line(defect, capsys):
    defect(ZeroDivisionError("division\nby zero"))
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == (
        "perceiver inspect: unexpected ZeroDivisionError: division by zero; "
        "--debug shows the traceback\n"
    )
    assert main(["inspect", "--debug", "x"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "in broken" in told
    assert told.splitlines()[-1].endswith("unexpected ZeroDivisionError: division by zero")


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
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "/a"), "/a: the command cannot write or read (No"),
        (PermissionError(13, "Permission denied", "/a"), "/a: the command cannot write or read (P"),
        (MemoryError(), "the command ran out of memory"),
        (wrapped(MemoryError(), "worker_failures"), "worker 1 ran out of memory"),
    ],
)
def test_what_a_machine_lacks_is_told_without_a_traceback(defect, capsys, error, told):
    defect(error)
    assert main(["inspect", "x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"perceiver inspect: {told}")
    assert "unexpected" not in line


def test_an_error_of_mlflow_is_no_defect_of_ours(defect, capsys):
    from mlflow.exceptions import MlflowException

    defect(MlflowException("API request to http://u:secret@h/api failed"))
    assert main(["inspect", "x"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("perceiver inspect: MLflow does not answer, or refuses what it is asked")
    assert "secret" not in told


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
