"""Run notebooks and store their outputs, byte-stable (no counts, no widget state).

Usage: ``python tools/run_notebooks.py nbs/03_job.ipynb …`` (default: every notebook).
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell

_NOT_RUN = re.compile(r"^#\s?\|\s*(eval:\s*false|slow|gpu)\b", re.MULTILINE)


def _is_skipped(cell: Any) -> bool:
    """Whether a cell keeps its stored outputs: prose, or code that tests do not run."""
    return cell.cell_type != "code" or bool(_NOT_RUN.search(cell.source))


def refresh(path: Path) -> None:
    """Run one notebook in its own folder and write it back; stop at the first error."""
    notebook = read_nb(path)
    for cell in notebook.cells:
        if not _is_skipped(cell):
            cell.outputs = []  # the shell leaves a cell without output as it was
    shell: Any = CaptureShell(path, mpl_format=None)  # execnb patches its methods in
    shell.run_all(notebook, exc_stop=True, preproc=_is_skipped)  # pylint: disable=no-member
    write_nb(notebook, path)


if __name__ == "__main__":
    os.environ.setdefault("IN_TEST", "1")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", help="default: every notebook")
    names = parser.parse_args().notebooks or sorted(str(p) for p in Path("nbs").rglob("*.ipynb"))
    for name in names:
        if len(names) == 1:
            refresh(Path(name))
        else:  # in a process of its own, as the tests run it: settings of logging outlive a shell
            print(name, flush=True)
            subprocess.run([sys.executable, __file__, name], check=True)
