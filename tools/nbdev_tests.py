"""Run the notebooks as `nbdev_test` does, with its options, and let none hang or fail unheard.

A cell that takes longer than `CELL_SECONDS` fails; so does a notebook in which a thread ends with
an exception, which Python would only print.
"""

import importlib
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import nbdev.test
from execnb.shell import CaptureShell

CELL_SECONDS = 300.0
"""Several times what the slowest cell takes on two slow cores."""
AGAIN_SECONDS = 30.0
"""After so long, a cell that goes on all the same is interrupted again."""
_test_nb = nbdev.test.test_nb


class CellTimeout(BaseException):
    """A cell took too long; no ``except Exception`` of its code stops that."""


class LimitedShell(CaptureShell):
    """A notebook's shell whose cells have a limit."""

    def run_cell(self, *given: Any, **options: Any) -> Any:
        """Run a cell, and interrupt it at the limit; again, if it goes on all the same."""

        def interrupt(_: int, __: FrameType | None) -> None:
            raise CellTimeout(f"a cell took longer than {CELL_SECONDS:g} seconds")

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, CELL_SECONDS, AGAIN_SECONDS)
        try:
            return super().run_cell(*given, **options)  # pylint: disable=no-member
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_nb(*given: Any, **options: Any) -> tuple[bool, float]:
    """Run one notebook; returns whether it passed, and how many seconds it took."""
    failures: list[Any] = []
    before, threading.excepthook = threading.excepthook, failures.append
    nbdev.test.CaptureShell = LimitedShell
    try:
        passed, seconds = _test_nb(*given, **options)
    finally:
        threading.excepthook = before
    for failure in failures:
        print(f"{given[0]}: a thread failed", file=sys.stderr)
        traceback.print_exception(failure.exc_value)
    return passed and not failures, seconds


if __name__ == "__main__":
    module = importlib.import_module(Path(__file__).stem)  # `__main__` is a notebook in its worker
    nbdev.test.test_nb = module.test_nb
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    with importlib.import_module("keeper").hold():  # one broker for all notebooks
        nbdev.test.nbdev_test()
