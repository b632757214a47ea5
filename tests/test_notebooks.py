"""What notebooks owe each other: nbdev_test runs several of them in one process."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("nbs/**/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_silences_the_next(path: Path) -> None:
    """`logging.disable` outlives a notebook, and hides the warnings that another one asserts."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if "logging.disable(" in "".join(cell["source"])]
