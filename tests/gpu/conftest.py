"""Tests that want a GPU: ``pytest -m gpu --confcutdir=tests/gpu tests/gpu``.

``--device cpu`` runs the same lines without one, so that none of them is new on the card; what only
a GPU can do (run out of memory, be lost) is acted there.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
for folder in ("tests", "bench"):
    sys.path.insert(0, str(ROOT / folder))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where to draw."""
    parser.addoption("--device", default="cuda", choices=("cuda", "cpu"), help="where to draw")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device; without CUDA its tests fail, and are not skipped."""
    import torch

    chosen = str(request.config.getoption("--device"))
    assert chosen == "cpu" or torch.cuda.is_available(), "no CUDA device here"
    torch.backends.cudnn.allow_tf32 = False  # single precision is to be exact
    if chosen == "cpu":
        torch.set_num_threads(1)
    return chosen
