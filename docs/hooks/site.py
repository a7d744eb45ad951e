"""What the site has beside the pages in `docs/`: generated from the code when it is built.

- `fields.md` gets the reference of every configuration field.
- `api/` gets one page for each package and each room of `pipeline`, with all of its modules.
- `CHANGELOG.md` and `CONTRIBUTING.md` are taken from the root of the repository.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from configuration_reference import markdown  # noqa: E402 (after the path is set)

from pipeline.config.tree import Config  # noqa: E402 (after the path is set)

FIELDS_MARK = "<!-- every field -->"
FROM_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")
PACKAGES = ("perceiver_model", "shards", "cluster", "pipeline")


def on_config(config: Any) -> Any:
    """Put the generated pages into the navigation."""
    api = [{title: f"api/{title}.md"} for title in _api_pages()]
    for entry in config.nav:
        if "API" in entry:
            entry["API"] += api
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and those that lie outside of `docs/`."""
    for name in FROM_ROOT:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    for title, modules in _api_pages().items():
        blocks = "\n\n".join(f"::: {module}" for module in modules)
        files.append(File.generated(config, f"api/{title}.md", content=f"# {title}\n\n{blocks}\n"))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Write the reference of the fields where the page has its mark."""
    if FIELDS_MARK not in text:
        return text
    return text.replace(FIELDS_MARK, markdown(Config))


def _api_pages() -> dict[str, list[str]]:
    """The public modules of each page, by the page's title: a package, or a room of `pipeline`."""
    pages: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if any(re.match(r"_(?!_init__$)", part) for part in parts):
                continue
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            title = ".".join(parts[:2] if package == "pipeline" else parts[:1])
            pages.setdefault(title, []).append(".".join(parts))
    return pages
