"""Run notebooks and store their outputs, byte-stable (no counts, no widget state).

Usage: ``python tools/run_notebooks.py nbs/01_job.ipynb …`` (default: every notebook).
"""

import os
import re
import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell

_NOT_RUN = re.compile(r"^#\s?\|\s*(eval:\s*false|slow|gpu)\b", re.MULTILINE)


def refresh(path: Path) -> None:
    """Run one notebook in its own folder and write it back; stop at the first error."""
    notebook = read_nb(path)
    shell = CaptureShell(path, mpl_format=None)
    kept = {cell.id: cell.outputs for cell in notebook.cells if _is_kept(cell)}
    shell.run_all(notebook, exc_stop=True, preproc=lambda cell: not _runs(cell))
    for cell in notebook.cells:
        if cell.id in kept:
            cell.outputs = kept[cell.id]
    write_nb(notebook, path)


def _runs(cell: object) -> bool:
    return cell.cell_type == "code" and not _NOT_RUN.search(cell.source)


def _is_kept(cell: object) -> bool:
    return cell.cell_type == "code" and bool(_NOT_RUN.search(cell.source))


if __name__ == "__main__":
    os.environ.setdefault("IN_TEST", "1")
    for name in sys.argv[1:] or sorted(str(p) for p in Path("nbs").rglob("*.ipynb")):
        print(name, flush=True)
        refresh(Path(name))
