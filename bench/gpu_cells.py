"""Run the notebooks' cells that are tagged ``gpu``, with all that come before them.

Usage: ``python bench/gpu_cells.py [NOTEBOOK …]``; by default every notebook that has such a cell.
Prints a line a notebook; needs neither nbdev nor Jupyter, which a machine with a card may lack.
"""

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NBS = Path(__file__).parent.parent / "nbs"
GPU = re.compile(r"^#\s?\|\s*gpu\b", re.MULTILINE)
NOT_RUN = re.compile(r"^#\s?\|\s*(eval:\s*false|slow)\b", re.MULTILINE)


def cells(path: Path) -> list[str]:
    """Sources of a notebook's code cells."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def tagged() -> Iterator[Path]:
    """Notebooks with a cell for a GPU."""
    for path in sorted(NBS.rglob("*.ipynb")):
        if any(GPU.search(source) for source in cells(path)):
            yield path


def run(path: Path, **names: Any) -> dict[str, Any]:
    """Run a notebook in its own folder, up to its last cell for a GPU if it has one.

    Args:
        path: The notebook.
        **names: What its cells find defined.

    Returns:
        All names that are defined in the end.
    """
    sources, here = cells(path), Path.cwd()
    last = max((n for n, source in enumerate(sources) if GPU.search(source)), default=len(sources))
    space = {"__name__": "__main__"} | names
    os.chdir(path.parent)
    try:
        for number, source in enumerate(sources[: last + 1]):
            if not NOT_RUN.search(source):
                code = compile(source, f"{path.name}, code cell {number}", "exec")
                exec(code, space)  # pylint: disable=exec-used
    finally:
        os.chdir(here)
    return space


def main(names: list[str]) -> int:
    """Run notebooks; 1 if one of them fails, or none is there."""
    paths = [Path(name).resolve() for name in names] or list(tagged())
    failed = 0
    for path in paths:
        try:
            run(path)
        except Exception:  # pylint: disable=broad-exception-caught
            traceback.print_exc()
            failed += 1
            print(f"{path.name} FAILED", flush=True)
        else:
            print(f"{path.name} OK", flush=True)
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
