"""The copy of the source's weights in the run folder, which the workers read.

init.safetensors   every tensor of the source, by the names of our models
init.json          from, origin, sha256, settings
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cluster.fragments import whole_shape
from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.records import write_json
from pipeline.runs.storage import read_bytes, writable
from pipeline.training.initial_weights.matching import TensorKind
from pipeline.training.initial_weights.sources import InitSource
from pipeline.training.stored_tensors import CHUNK_BYTES, StoredTensors, bytes_of, read_layout
from shards.errors import ShardError
from shards.plain import is_sha256

TENSORS_FILE = "init.safetensors"
NOTE_FILE = "init.json"
_MAX_NOTE_BYTES = 64 << 20
_MEND = "start this training again with --fresh"


@dataclass(frozen=True)
class SavedInit:
    """What `init.json` says of the weights in `init.safetensors`.

    Attributes:
        folder: The folder of both files.
        address: The value of `model.init.from` when they were written.
        origin: What was read, in words.
        sha256: The digest of the tensors, from `digest_of`.
        settings: The settings of the source's model, by dotted names.
    """

    folder: Folder
    address: str
    origin: str
    sha256: str
    settings: dict[str, Any] = field(default_factory=dict)

    def open(self) -> StoredTensors:
        """Return the tensors, to be read in ranges. Only the header of their file is read.

        Raises:
            UserError: The file is missing or damaged.
        """
        try:
            return read_layout(self.folder, [TENSORS_FILE])
        except UserError as error:
            raise UserError(f"{error}; {_MEND}") from None

    def kinds(self) -> dict[str, TensorKind]:
        """Return what must agree between these tensors and a model's, by name.

        Raises:
            UserError: As `open`.
        """
        with self.open() as stored:
            return {
                name: TensorKind(tensor.shape, tensor.dtype.is_floating_point)
                for name, tensor in stored.tensors.items()
            }

    def check(self) -> None:
        """Read the whole file once, a bounded piece at a time, and compare it with the note.

        Raises:
            UserError: The file is missing or damaged, or its tensors are not those of the note.
        """
        with self.open() as stored:
            digest, is_finite = _digest_of_stored(stored)
        if digest != self.sha256 or not is_finite:
            raise UserError(
                f"{self.folder / TENSORS_FILE}: is damaged (its digest differs from {NOTE_FILE}); "
                f"{_MEND}"
            )


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of all names, dtypes, shapes and values. It depends on no file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_heading(name, tensor.dtype, tuple(tensor.shape)))
        digest.update(bytes_of(tensor.contiguous().reshape(-1)))
    return digest.hexdigest()


def _digest_of_stored(stored: StoredTensors) -> tuple[str, bool]:
    """Return the same digest of tensors in a file, and whether all values are finite."""
    digest, is_finite = hashlib.sha256(), True
    for name, tensor in sorted(stored.tensors.items()):
        digest.update(_heading(name, tensor.dtype, tensor.shape))
        step = CHUNK_BYTES // tensor.dtype.itemsize
        for start in range(0, tensor.length, step):
            part = stored.read(name, start, min(step, tensor.length - start))
            digest.update(bytes_of(part))
            is_finite = is_finite and bool(torch.isfinite(part).all())
    return digest.hexdigest(), is_finite


def _heading(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    return json.dumps([name, str(dtype), list(shape)]).encode()


def kinds_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorKind]:
    """Return what must agree between tensors, by name."""
    return {
        name: TensorKind(whole_shape(tensor), tensor.is_floating_point())
        for name, tensor in tensors.items()
    }


def save_init(folder: Folder, source: InitSource, sha256: str) -> None:
    """Write a source's weights into a run folder, each file completely or not at all.

    Raises:
        UserError: The folder cannot be written.
    """
    path = folder / TENSORS_FILE
    tensors = {name: tensor.contiguous() for name, tensor in source.tensors.items()}
    if isinstance(path, Path):
        partial = path.with_name(f".partial-{TENSORS_FILE}")
        try:
            save_file(tensors, partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error})") from error
    else:
        with writable(path) as file:
            save_file(tensors, file)
    note = {
        "from": source.address,
        "origin": source.origin,
        "sha256": sha256,
        "settings": source.settings,
    }
    write_json(folder / NOTE_FILE, note)


def read_init(folder: Folder) -> SavedInit | None:
    """Return what is saved in a run folder; None if nothing is.

    Raises:
        UserError: The note is damaged.
    """
    path = folder / NOTE_FILE
    try:
        note = json.loads(read_bytes(path, _MAX_NOTE_BYTES))
        address, origin, sha256 = (note[name] for name in ("from", "origin", "sha256"))
        settings = note["settings"]
        if not isinstance(address, str) or not isinstance(origin, str) or not is_sha256(sha256):
            raise ValueError("a field has another type")
        if not isinstance(settings, dict):
            raise ValueError("settings is no object")
        return SavedInit(folder, address, origin, sha256, settings)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ShardError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {_MEND}") from None
