"""Count the house: per room its modules, export cells, outputs and pictures.

Usage: ``python tools/rooms.py``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
EXPORTED = re.compile(r"^#\s?\|\s*exporti?\b", re.MULTILINE)
NAMED = re.compile(r"^#\s?\|\s*default_exp\s+(\S+)", re.MULTILINE)
HEADS = (
    "room",
    "modules",
    "lines",
    "export cells",
    "lines",
    "others a cell",
    "outputs",
    "pictures",
)
MAX_EXPORT_LINES = 40


def cells(notebook: Path) -> list[Any]:
    """A notebook's cells."""
    return list(json.loads(notebook.read_text(encoding="utf-8"))["cells"])


def rooms() -> Iterator[tuple[str, list[Path]]]:
    """Each folder of notebooks that export something; what lies on the ground is ``ground``."""
    folders = {path.parent for path in (ROOT / "nbs").rglob("*.ipynb")}
    for folder in sorted(folders):
        notebooks = [path for path in sorted(folder.glob("*.ipynb")) if module_of(path)]
        if notebooks:
            yield folder.name if folder != ROOT / "nbs" else "ground", notebooks


def module_of(notebook: Path) -> Path | None:
    """The module that a notebook writes, if it writes one."""
    for cell in cells(notebook):
        if found := NAMED.search("".join(cell["source"])):
            return ROOT / f"stylegen/{found[1].replace('.', '/')}.py"
    return None


def export_sizes(notebook: Path) -> dict[int, int]:
    """Lines of each export cell without its directive, by the cell's place in the notebook."""
    sources = ["".join(cell["source"]) for cell in cells(notebook)]
    exported = {n: source for n, source in enumerate(sources) if EXPORTED.search(source)}
    return {n: len(source.splitlines()) - 1 for n, source in exported.items()}


def too_long(notebook: Path) -> Iterator[str]:
    """Each export cell of more than `MAX_EXPORT_LINES`, by file and cell."""
    for number, lines in export_sizes(notebook).items():
        if lines > MAX_EXPORT_LINES:
            yield f"{notebook}: export cell {number} has {lines} lines, over {MAX_EXPORT_LINES}"


def middle_and_most(counts: Sequence[int]) -> str:
    """Median and maximum."""
    return f"{median(counts):.0f} / {max(counts)}" if counts else "0"


def row(room: str, notebooks: Sequence[Path]) -> list[str]:
    """What is counted in a room, as `HEADS` says it."""
    modules = [module_of(path) for path in notebooks]
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules if path]
    every = [cell for path in notebooks for cell in cells(path)]
    outputs = [output for cell in every for output in cell.get("outputs", ())]
    pictures = sum(any("image/" in kind for kind in o.get("data", ())) for o in outputs)
    sizes = [size for path in notebooks for size in export_sizes(path).values()]
    others = (len(every) - len(sizes)) / max(1, len(sizes))
    counts = [len(lines), middle_and_most(lines), len(sizes), middle_and_most(sizes)]
    return [room, *map(str, counts), f"{others:.1f}", str(len(outputs)), str(pictures)]


def table() -> str:
    """The house as a Markdown table; lines are median / largest."""
    rows = [row(room, notebooks) for room, notebooks in rooms()]
    head = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    return "\n".join(head + ["| " + " | ".join(each) + " |" for each in rows])


if __name__ == "__main__":
    print(table())
