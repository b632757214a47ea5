"""Fails when a room of the package imports one that it may not know, and says where."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GROUND = {"addresses", "variables", "settings", "errors", "fields", "job", "logs"}
STATIONS = {"signature", "storage", "webhook", "queue"}
KNOWS = {
    "": set[str](),
    "addresses": set[str](),
    "variables": {"addresses"},
    "settings": {"addresses", "variables"},
    "errors": set[str](),
    "fields": set[str](),
    "job": {"errors", "fields"},
    "logs": set[str](),
    "signature": GROUND,
    "storage": GROUND,
    "webhook": GROUND,
    "queue": GROUND,
    "pipeline": GROUND | STATIONS,
    "pocket": {"pipeline"},
    "worker": GROUND | STATIONS | {"pipeline"},
    "playground": GROUND | STATIONS | {"pipeline"},
    "fleet": GROUND | STATIONS | {"pipeline", "worker"},
}
"""For each room, or module on the ground, what it may import besides itself; all know `stylegen`.

The stations don't know each other, nobody knows the playground or the fleet.
"""


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Lines that import from the package, each with the room, in a module of `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "stylegen" and len(parts) > 1:
                yield node.lineno, parts[1]


def wrong(root: Path) -> Iterator[str]:
    """Each import against the direction, as ``file:line: what``."""
    for path in sorted(root.glob("stylegen/**/*.py")):
        package = list(path.relative_to(root).parent.parts)
        room = package[1] if len(package) > 1 else path.stem.strip("_")
        room = "" if room in ("init", "modidx") else room
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, other in sorted(set(imported(tree, package))):
            where = f"{path.relative_to(root)}:{line}"
            if room not in KNOWS:
                yield f"{where}: tools/directions.py does not say what {room} may import"
            elif other in KNOWS and other != room and other not in KNOWS[room]:
                yield f"{where}: {room or 'stylegen'} may not import {other}"


if __name__ == "__main__":
    found = list(wrong(ROOT))
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))
