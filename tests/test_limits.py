"""The page of limits says what the code does, and leaves none out."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "%": 0.01}
ROW = re.compile(r"^\| .+ \| (.+) \| `([\w.]+)\.([A-Z_]+)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/limits.md").read_text(encoding="utf-8"))
ROOMS = ("webhook", "queue", "storage", "pipeline", "signature", "worker")
ELSEWHERE = {"MAX_REDELIVERIES": "a setting's default", "TICK": "nobody sees it"}
"""Figures that are no limit of an operator's, and why."""


def figure(text: str) -> float:
    """The figure of a cell, in the unit that the code has."""
    amount, _, unit = text.replace(",", "").partition(" ")
    return float(amount) * UNITS.get(unit, 1)


@pytest.mark.parametrize(("cell", "module", "name"), ROWS, ids=[row[2] for row in ROWS])
def test_the_page_says_what_the_code_does(cell: str, module: str, name: str) -> None:
    """A pause that is drawn has a least value, a limit at first, and a last one."""
    value = getattr(import_module(f"stylegen.{module}"), name)
    if isinstance(value, (int, float)):
        assert value == pytest.approx(figure(cell))
    else:
        drawn = [float(each) for each in re.findall(r"[\d.]+", cell)]
        assert [value.min, value.multiplier, value.max] == drawn


def test_no_figure_is_left_out() -> None:
    """Each number that a module gives a public name is on the page, or said to be none of it."""
    named = {(f"{module.replace('.', '/')}.py", name) for _, module, name in ROWS}
    for room in ROOMS:
        for path in sorted((ROOT / "stylegen" / room).glob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    name = node.targets[0].id
                    value = getattr(import_module(f"stylegen.{room}.{path.stem}"), name, None)
                    if name.isupper() and name[0] != "_" and type(value) in (int, float):
                        where = f"{room}/{path.name}", name
                        assert where in named or name in ELSEWHERE, where
