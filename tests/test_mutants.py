"""The tool that makes small mistakes: which it makes, and whether it sees what notices them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import mutants  # noqa: E402  pylint: disable=wrong-import-position,import-error

CODE = '''
import logging
import re

_log = logging.getLogger(__name__)
__all__ = ["allowed"]
LIMIT = 3
NAME = re.compile(r"[a-z]+\\.txt$")


def allowed(count: int) -> bool:
    """Whether there may be so many."""
    _log.info("asked for %d", count)
    if count < 0:
        raise ValueError("a count is not negative")
    return count < LIMIT


def unheard(count: int) -> int:
    """No test knows it."""
    return count + 1
'''
SMALL = '''LIMIT = 3


def allowed(count: int) -> bool:
    """Whether there may be so many."""
    return count < LIMIT


def unheard(count: int) -> int:
    """No test knows it."""
    return count + 1


def untested(count: int) -> int:
    """Nor this, but its types are checked."""
    return unheard(count)
'''
TEST = """
from stylegen.small import allowed


def test_allowed() -> None:
    assert allowed(2) and not allowed(3)
"""


def changed(code: str) -> list[str]:
    """The lines that the makers' sources have and the code has not."""
    makers = (*mutants.in_functions(code), *mutants.of_constants(code))
    return [line for make in makers for line in make().splitlines() if line not in CODE]


def test_kinds() -> None:
    """Comparisons, numbers and expressions are changed, and no text for people."""
    lines = changed(CODE)
    assert {"    return count <= LIMIT", "    return count - 1", "LIMIT = (3 + 1)"} <= set(lines)
    assert 'NAME = re.compile(r"[a-z]*\\.txt$")' in lines
    assert not [line for line in lines if "_log.info" in line or "__all__" in line]
    assert [line for line in lines if "ValueError" in line] == ["        raise ValueError(None)"]


def test_sample() -> None:
    """A seed takes the same ones, and constants are among them."""
    names = [str(each) for each in mutants.sampled("small", CODE, 16, seed=1)]
    assert names == [str(each) for each in mutants.sampled("small", CODE, 16, seed=1)]
    assert names != [str(each) for each in mutants.sampled("small", CODE, 16, seed=2)]
    assert sum("LIMIT = " in name or "NAME = " in name for name in names) == 2


def test_notebook(tmp_path: Path) -> None:
    """The notebook that a module comes from has the same change, in the same cell."""
    sources = [
        "#| export\nfrom stylegen.other import LIMIT\n\nBOTH = LIMIT + 1\n",
        "BOTH = LIMIT + 1",
    ]
    cells = [{"id": f"c{number}", "source": [source]} for number, source in enumerate(sources)]
    (tmp_path / "nbs").mkdir()
    path = tmp_path / "nbs/00_small.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    code = "# %% ../nbs/00_small.ipynb #c0\nfrom .other import LIMIT\n\nBOTH = LIMIT + 1\n"
    changed = mutants.notebooks_with(code, code.replace("+ 1", "- 1"), tmp_path)
    cells[0]["source"] = sources[0].replace("+ 1", "- 1")
    assert {name: json.loads(text)["cells"] for name, text in changed.items()} == {
        path: [cells[0], {"id": "c1", "source": [sources[1]]}]
    }
    with mutants.replaced(changed):
        assert path.read_text(encoding="utf-8") == changed[path]
    assert not mutants.notebooks_with(code, code, tmp_path)
    assert json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"] == [sources[0]]


def test_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole run: what a test passes through is caught, what none knows survives and is listed."""
    project = tmp_path / "project"
    files = {"stylegen/__init__.py": "", "stylegen/small.py": SMALL, "tests/test_small.py": TEST}
    files["pyproject.toml"] = '[tool.mypy]\npackages = ["stylegen"]\n'
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text, encoding="utf-8")
    subprocess.run("git init -q && git add .", shell=True, cwd=project, check=True)
    reason = "the test does not know it"
    (project / "reasons.toml").write_text(
        f'[[mutant]]\nmodule = "small"\nbefore = "return count + 1"\n'
        f'after = "return count - 1"\nreason = "{reason}"\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(mutants, "ROOT", project)
    monkeypatch.setattr(mutants, "OUT", tmp_path / "out")
    monkeypatch.setattr(mutants, "REASONS", project / "reasons.toml")
    monkeypatch.setattr(mutants, "TESTS", {"small": ["small"]})
    monkeypatch.setattr(mutants, "EVERYWHERE", ())
    monkeypatch.setattr(sys, "argv", ["mutants", "--sample", "100"])
    with pytest.raises(SystemExit) as end:
        mutants.main()
    said = capsys.readouterr().out
    verdicts = said.partition("survived  small")[0]
    assert "caught   small:6\n    - return count < LIMIT\n    + return count <= LIMIT" in verdicts
    assert "caught   small:1\n    - LIMIT = 3" in verdicts
    assert "caught   small:16\n    - return unheard(count)\n    + return unheard(None)" in verdicts
    assert f"+ return count - 1\n    {reason}" in said
    assert "+ return count + 2\n    no reason is known" in said
    assert end.value.code == 1
    assert (project / "stylegen/small.py").read_text(encoding="utf-8") == SMALL


def test_reasons_are_of_lines_that_exist() -> None:
    """A reason for code that is no more would excuse other code."""
    for module, before, _ in mutants.reasons():
        code = (mutants.ROOT / f"stylegen/{module}.py").read_text(encoding="utf-8")
        assert before in " ".join(map(str.strip, code.splitlines())), (module, before)
