"""A decoder that is taken over: what it tries fails, and it is known which layer holds it back."""

import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from malformed import valid_files
from modality_samples import FORMATS, raw_media
from sandbox_kernel import expected_layers, landlock_version, may_unshare

from pipeline.config.data import DataConfig
from pipeline.media import (
    AudioFormat,
    ImageFormat,
    MediaError,
    MediaFormat,
    PointsFormat,
    VideoFormat,
    decode_all,
    encode_members,
    media_to_dict,
)
from pipeline.media.sandbox.process import _memory
from pipeline.media.sandbox.sandbox import Sandbox, protections
from pipeline.preprocess.identity import sandbox_settings

TESTS = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")

REFUSED = re.compile(r"E[A-Z0-9]+|not allowed to raise maximum limit")
"""What an attempt that is held back ends with. One that kills its own process got through."""


def attempts(folder: Path, user: str, *blocked: str) -> dict:
    """What `sandbox_parent` found, as that user, on a kernel without those layers."""
    folder.chmod(0o777)
    done = subprocess.run(
        [sys.executable, TESTS / "sandbox_parent.py", folder, user, *blocked],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "no user namespace" in done.stderr:
        pytest.skip("this machine allows no user namespace, by which root becomes a user here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outcomes_fit(found: dict) -> None:
    """What gets through is what is reported missing."""
    for protection, outcomes in found["outcomes"].items():
        through = {escape for escape, told in outcomes.items() if not REFUSED.fullmatch(told)}
        told = (protection, found["layers"].get(protection), outcomes)
        assert bool(through) == (protection in found["missing"]), told


# --- escapes ---


@pytest.mark.parametrize(
    ("user", "blocked"),
    [
        ("root", ()),
        ("user", ()),
        ("root", ("landlock",)),
        ("user", ("landlock", "namespaces")),
        ("root", ("seccomp",)),
        ("user", ("seccomp",)),
        ("root", ("landlock", "seccomp")),
        ("user", ("landlock", "seccomp")),
        ("root", ("landlock", "seccomp", "namespaces")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "whole",
)
def test_an_escape_gets_through_only_where_its_protection_is_reported_missing(
    tmp_path, user, blocked
):
    found = attempts(tmp_path, user, *blocked)
    layers, missing = found["layers"], found["missing"]
    assert layers == expected_layers(user, blocked)
    outcomes_fit(found)
    assert not found["left"], "what a decoder started ends with it"
    for protection, why in missing.items():
        assert layers[protection] == [] and why
    # Whoever requires the protections is refused by their names.
    assert bool(found["required"]) == bool(missing)
    assert all(f"{name} ({why})" in found["required"] for name, why in missing.items())


def test_the_layers_of_this_kernel_hold_what_they_are_for(tmp_path):
    """Each layer alone, as far as this machine has it."""
    here = expected_layers("root", ())
    if "Landlock" in here["reading"]:
        found = attempts(tmp_path, "root", "seccomp", "namespaces")
        assert found["layers"] == expected_layers("root", ("seccomp", "namespaces"))
        outcomes_fit(found)
        if landlock_version() >= 4:
            assert found["outcomes"]["network"]["tcp"] == "EACCES"
        if landlock_version() >= 6:
            assert found["outcomes"]["signals"]["abstract socket"] == "EPERM"
    if "seccomp" in here["processes"]:
        (tmp_path / "second").mkdir()
        found = attempts(tmp_path / "second", "root", "landlock", "namespaces")
        assert found["layers"] == expected_layers("root", ("landlock", "namespaces"))
        outcomes_fit(found)
        assert set(found["outcomes"]["seccomp"].values()) == {"ENOSYS"}


def test_threads_are_allowed_and_held_like_the_first():
    with Sandbox("sandbox_probes:threads", {}) as sandbox:
        (members,) = sandbox.run({}, {})
        expected = "escaped" if "reading" in sandbox.protections().missing else "EACCES"
    assert members["found"].decode().split() == [expected] * 3


def test_a_thread_of_a_library_is_held_too():
    """One that runs since the imports, before the filter of system calls."""
    with Sandbox("sandbox_probes:early_thread", {}) as sandbox:
        (members,) = sandbox.run({}, {})
    has_filter = "seccomp" in expected_layers("root", ())["network"]
    assert members["found"].decode() == ("ENOSYS" if has_filter else "escaped")


def test_a_thread_before_the_protections_is_an_error():
    """Landlock, capabilities and namespaces would not hold it."""
    program = """
import threading
from pipeline.media.sandbox.lockdown import Lockdown
threading.Thread(target=threading.Event().wait, daemon=True).start()
Lockdown().before_imports()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "RuntimeError: a thread was started before the sandbox was closed" in done.stderr


@pytest.mark.skipif(not may_unshare(as_user=True), reason="needs a user namespace")
@pytest.mark.parametrize("mounts", [False, True])
def test_the_network_the_shared_memory_and_the_mounts_are_its_own(mounts):
    program = f"""
import os
from pipeline.media.sandbox.namespaces import leave_network
kinds = ("net", "ipc", "mnt")
before = [os.readlink(f"/proc/self/ns/{{kind}}") for kind in kinds]
leave_network(with_mounts={mounts})
print(*(os.readlink(f"/proc/self/ns/{{kind}}") != was for kind, was in zip(kinds, before)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == f"True True {mounts}\n", done.stderr


def test_the_shared_memory_keeps_its_size_and_its_seals():
    with _memory() as number:
        size = os.fstat(number).st_size
        for other in (0, size - 1, size + 1, 1 << 40):
            with pytest.raises(PermissionError):
                os.ftruncate(number, other)
        with pytest.raises(PermissionError):
            fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert os.fstat(number).st_size == size


def test_the_child_has_no_variable_no_file_and_no_folder_of_its_parents(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "private").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with Sandbox("sandbox_probes:surroundings", {}) as sandbox:
            (members,) = sandbox.run({}, {})
    told = {name: value.decode().split("\n") for name, value in members.items()}
    needed = {"LANG", "LC_CTYPE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
    needed |= {"LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUSERBASE"}
    needed |= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    assert {*told["environment"]} <= needed
    kinds = sorted(line.split(":")[1] for line in told["descriptors"])
    null, shared = oct(Path(os.devnull).stat().st_mode), oct(stat.S_IFREG | 0o777)
    assert kinds == [shared, null, null, null, "pipe", "pipe"]
    assert told["folder"] == ["/"]


# --- what the child says is not believed ---


@pytest.mark.parametrize(
    "forged",
    [
        "a long header",
        "no JSON",
        "no object",
        "negative size",
        "endless blob",
        "beyond the shared memory",
        "a member out of the shard",
        "two members of one name",
        "a name that is none",
        "a kind that is none",
        "deep JSON",
    ],
)
def test_a_forged_answer_costs_its_file_alone(forged):
    with Sandbox("sandbox_probes:forge", {}, seconds=2, memory_bytes=400 << 20) as sandbox:
        with pytest.raises(MediaError, match=r"^the decoder's answer is malformed$"):
            list(sandbox.run({}, {"forged": forged}))
        assert list(sandbox.run({}, {"forged": "nothing"})) == [{"ok": b""}]


def test_a_forged_reason_does_nothing_to_a_terminal():
    with (
        Sandbox("sandbox_probes:forge", {}, seconds=2) as sandbox,
        pytest.raises(MediaError) as caught,
    ):
        list(sandbox.run({}, {"forged": "escape codes"}))
    assert str(caught.value) == "�]0;title��[2Jgone�"
    assert "\x1b" not in caught.value.trace


def test_a_forged_reason_is_short():
    with (
        Sandbox("sandbox_probes:forge", {}, seconds=2) as sandbox,
        pytest.raises(MediaError) as caught,
    ):
        list(sandbox.run({}, {"forged": "much text"}))
    assert len(str(caught.value)) == 2000
    assert len(caught.value.trace.splitlines()) == 200


# --- decoders work all the same ---

FILES: dict[str, MediaFormat] = {
    **dict.fromkeys(
        ("png", "jpg", "gif", "webp", "bmp", "tiff", "ppm"),
        ImageFormat(height=24, width=16, channels=3),
    ),
    **dict.fromkeys(
        ("wav", "flac", "ogg", "mp3", "gsm"), AudioFormat(sample_rate=4000, seconds=0.5)
    ),
    **dict.fromkeys(
        ("mp4", "avi"),
        VideoFormat(num_frames=2, height=8, width=8, channels=3, frames_per_second=4),
    ),
    **dict.fromkeys(("obj", "ply", "off", "stl", "glb"), PointsFormat(num_points=16)),
}


def decoded(data: bytes, fmt: MediaFormat, name: str) -> list[dict[str, bytes]]:
    return [encode_members(array, fmt) for array in decode_all(data, fmt, name=name)]


@pytest.mark.parametrize("modality", ["image", "audio", "video", "points"])
def test_every_kind_of_file_decodes_inside_as_outside(modality):
    files = valid_files()
    kinds = [kind for kind, fmt in FILES.items() if fmt.modality == modality]
    with Sandbox("sandbox_functions:decode_media", media_to_dict(FILES[kinds[0]])) as sandbox:
        for kind in kinds:
            name = f"a.{kind}"
            inside = list(sandbox.run({"file": (files[kind], name)}, {}))
            assert inside == decoded(files[kind], FILES[kind], name) != [], kind


@pytest.mark.parametrize("kind", FORMATS)
def test_every_modality_decodes_inside_as_outside(kind):
    data = raw_media(kind, 3)
    with Sandbox("sandbox_functions:decode_media", media_to_dict(FORMATS[kind])) as sandbox:
        inside = list(sandbox.run({"file": (data, "")}, {}))
    assert inside == decoded(data, FORMATS[kind], "")


def test_it_works_from_code_that_travels_with_a_model(tmp_path):
    """Only the code's own folder is there, and the working folder is another."""
    code = tmp_path / "model" / "code"
    for package in ("pipeline", "shards"):
        shutil.copytree(TESTS.parent / package, code / package)
    data = {"train": "unused", "image": {"height": 8, "width": 8}}
    settings = sandbox_settings(DataConfig.model_validate(data, strict=False), ("a",), {})
    program = f"""
import sys
sys.path.insert(0, {str(code)!r})
from pathlib import Path
from pipeline.media.sandbox.sandbox import Sandbox
import pipeline
assert pipeline.__file__.startswith({str(code)!r})
with Sandbox("pipeline.media.members:MemberMaker", {settings!r}) as sandbox:
    data = Path("a.png").read_bytes()
    (members,) = sandbox.run({{"image": (data, "a.png")}}, {{"target": 0}})
    print(len(members["image.npy"]), sandbox.protections().lacking())
"""
    (tmp_path / "a.png").write_bytes(valid_files()["png"])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{8 * 8 * 3 + 128} {protections().lacking()}\n", done.stderr


@pytest.mark.parametrize(("first", "second"), [("loose", "packages"), ("packages", "loose")])
def test_a_module_is_found_where_it_was_before_the_sandbox(tmp_path, first, second):
    """The earlier folder wins, of packages or not; an editable installation is asked last."""
    folders = {"loose": tmp_path / "loose", "packages": tmp_path / "site-packages"}
    for folder in [*folders.values(), tmp_path / "editable"]:
        folder.mkdir()
        (folder / "twice.py").write_text("")
    program = f"""
import sys
from importlib.machinery import PathFinder
from pipeline.media.sandbox.lockdown import prepare_imports

class Editable:
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, [{str(tmp_path / "editable")!r}])

sys.meta_path.append(Editable())
sys.path[:0] = [{str(folders[first])!r}, {str(folders[second])!r}]
prepare_imports()
import twice
print(twice.__file__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == f"{folders[first] / 'twice.py'}\n", done.stderr
