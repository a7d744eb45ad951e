"""Draws the house: the packages and the rooms of `pipeline`, and which imports which.

`python docs/hooks/house.py` reads the imports from the code and writes `docs/house.svg`.
"""

import ast
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent.parent
PICTURE = ROOT / "docs" / "house.svg"
FLOORS: tuple[dict[str, str], ...] = (
    {"cli": "the command line, Ray jobs"},
    {"benchmarks": "speed beside the peers", "studies": "questions, by trainings"},
    {"demo": "all of it on digits"},
    {"workflow": "stages, one after another", "serving": "the model over HTTP"},
    {"evaluation": "reports on a model"},
    {"registry": "promote, predict, the model", "tuning": "studies of Ray Tune"},
    {"plan": "what a training takes"},
    {"training": "worker, loop, checkpoints"},
    {"preprocess": "raw media to shards"},
    {"runs": "MLflow, records, console", "deploy": "files that start clusters"},
    {"config": "the configuration tree"},
    {"inputs": "arrays to a model's batch", "cluster": "Ray and DeepSpeed"},
    {"perceiver_model": "the mathematics", "media": "raw media to arrays"},
    {"shards": "samples on disk"},
)
"""From above: each room, and what it holds."""
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 230, 46, 330, 84, 60


def room_of(module: str) -> str:
    """The room of `pipeline`, or the package, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else parts[0]


def imports() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second, wherever in its modules."""
    rooms = {room for floor in FLOORS for room in floor}
    arrows = set()
    for package in ("benchmarks", "pipeline", "perceiver_model", "cluster", "shards"):
        for path in (ROOT / package).rglob("*.py"):
            here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for name in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                there = room_of(name)
                if here != there and {here, there} <= rooms:
                    arrows.add((here, there))
    return arrows


def without_shortcuts(arrows: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no way over other rooms replaces."""
    below: dict[str, set[str]] = {}
    for here, there in arrows:
        below.setdefault(here, set()).add(there)

    def reached(room: str) -> set[str]:
        nearest = below.get(room, set())
        return nearest.union(*map(reached, nearest))

    return {
        (here, there)
        for here, nearest in below.items()
        for there in nearest
        if not any(there in reached(other) for other in nearest - {there})
    }


def draw(arrows: Iterable[tuple[str, str]]) -> str:
    """The picture, as SVG."""
    corners = {
        room: (20 + ACROSS * column + (0 if len(floor) > 1 else ACROSS // 2), 20 + DOWN * row)
        for row, floor in enumerate(FLOORS)
        for column, room in enumerate(floor)
    }
    width, height = 40 + ACROSS + WIDTH + MARGIN // 2, 40 + DOWN * (len(FLOORS) - 1) + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" text-anchor="middle">',
        "<title>The rooms; an arrow goes from a room to one that it imports</title>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="#445"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for here, there in sorted(arrows):
        lines.append(_arrow(*corners[here], *corners[there]))
    for floor in FLOORS:
        for room, holds in floor.items():
            left, top = corners[room]
            lines.append(
                f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="8" '
                'fill="#eef3fb" stroke="#4a6fa5"/>'
                f'<text x="{left + WIDTH // 2}" y="{top + 20}" font-size="14" '
                f'font-weight="bold">{escape(room)}</text>'
                f'<text x="{left + WIDTH // 2}" y="{top + 37}" font-size="12" '
                f'fill="#4c5a68">{escape(holds)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _arrow(left: int, top: int, to_left: int, to_top: int) -> str:
    """A line from a box to one below; past other floors it goes around them, on the right."""
    x, y, to_x, to_y = left + WIDTH // 2, top + HEIGHT, to_left + WIDTH // 2, to_top
    path = f"M{x} {y}L{to_x} {to_y}"
    if to_top - top > DOWN:
        x, y, to_x, to_y = left + WIDTH, top + HEIGHT // 2, to_left + WIDTH, to_top + HEIGHT // 2
        beside = 20 + ACROSS + WIDTH + MARGIN
        path = f"M{x} {y}C{beside} {y} {beside} {to_y} {to_x} {to_y}"
    return (
        f'<path d="{path}" stroke="#445" stroke-width="1.4" fill="none" marker-end="url(#head)"/>'
    )


def _imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


if __name__ == "__main__":
    PICTURE.write_text(draw(without_shortcuts(imports())), encoding="utf-8")
