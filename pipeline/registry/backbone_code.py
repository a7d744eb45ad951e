"""The code of a registered model's backbone: what travels with it, and what has to be installed."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from perceiver_model.adapters.backbone_config import backbone_of
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.records import read_run_record

SECONDS = 300
_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}
_LOOK = """
import json, sys
code, card = sys.argv[1:]
sys.path.insert(0, code)
from pathlib import Path
from pipeline.registry.served.card import ModelCardError, read_card

def packages():
    found = {}
    for name, module in list(sys.modules.items()):
        own = getattr(module, "__dict__", {})
        places = [own.get("__file__"), *(own.get("__path__") or ())]
        if not any(str(place).startswith(code) for place in places):
            found[name.partition(".")[0]] = True
    return set(found)

before = packages()
try:
    read_card(Path(card))
except ModelCardError as error:
    print(json.dumps({"error": str(error).removeprefix(f"{card}: ")}))
else:
    print(json.dumps({"modules": sorted(packages() - before)}))
"""


def check_backbone_is_own(config: Config, run_id: str) -> None:
    """Refuse a run's backbone that no training of this output folder has had.

    The configuration comes from MLflow, and building the model runs the code that it names. The
    user's own configuration named the same module when it was trained here.

    Raises:
        UserError: There is no record of such a training.
    """
    backbone = backbone_of(config.model)
    if backbone is None:
        return
    records = [read_run_record(config.folder, stage) for stage in ("train", "tune")]
    named = [each.fingerprint.get("model.adapter.module") for each in records if each]
    if backbone.module not in named:
        raise UserError(
            f"run {run_id}: MLflow names the code {backbone.module} as its backbone, but "
            f"{config.folder} has no training with it; its code is not run"
        )


def module_file(name: str) -> Path | None:
    """Return the folder of a package, or the file of a module; None if it is installed.

    Args:
        name: The name of an importable package or module, without dots.
    """
    spec = find_spec(name)
    folders = spec.submodule_search_locations if spec else None
    origin = next(iter(folders), None) if folders else spec.origin if spec else None
    if origin is None or not Path(origin).exists() or name in sys.stdlib_module_names:
        return None
    return None if _PACKAGE_FOLDERS & {*Path(origin).parts} else Path(origin)


def requirements_of_backbone(card_file: Path, code: Path, pinned: Sequence[str]) -> list[str]:
    """Load a card in another process that finds only the code of the model and installed packages.

    Args:
        card_file: The card of a model with a backbone.
        code: The folder of the code that travels with the model.
        pinned: The requirements that every model has.

    Returns:
        The requirements of the backbone besides those, with the versions that are installed here.

    Raises:
        UserError: The backbone needs a module that neither travels nor is installed.
    """
    command = [sys.executable, "-I", "-c", _LOOK, str(code), str(card_file)]
    try:
        done = subprocess.run(
            command, cwd=code, capture_output=True, text=True, timeout=SECONDS, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise UserError(f"model.adapter: the backbone's code fails on its own: {reason}") from None
    if "error" in found:
        raise UserError(
            f"model.adapter: the model would not load elsewhere ({found['error']}); only the "
            "package of model.adapter.module and installed packages travel with a model"
        )
    names = {line.partition("==")[0].lower().replace("_", "-") for line in pinned}
    owners = metadata.packages_distributions()
    new = {owner for module in found["modules"] for owner in owners.get(module, ())}
    return [
        f"{owner}=={metadata.version(owner).partition('+')[0]}"
        for owner in sorted(new)
        if owner.lower().replace("_", "-") not in names
    ]
