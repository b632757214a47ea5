"""What a contributor is offered: a map, hooks before a commit, a report of what tests miss."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import examples
from hypothesis import settings

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))
sys.path.insert(0, str(ROOT / "tools"))
import fuzz  # noqa: E402  pylint: disable=wrong-import-position,import-error
from covered import table  # noqa: E402  pylint: disable=wrong-import-position,import-error


def test_the_map_leads_somewhere() -> None:
    """Each place of its right column is a notebook or a folder of them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| (`nbs/[^|]+) \|$", text, re.MULTILINE)
    assert len(rows) > 40
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        for place in (first, *(f"{Path(first).parent}/{name}" for name in others)):
            assert (ROOT / f"{place}.ipynb").exists() or (ROOT / place).is_dir(), place


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: "-".join(path.parts[-2:]))
def test_links_of_notebooks(path: Path) -> None:
    """Each link to a file leads to one."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    # the README is made from the index at the top, so its links start at the root
    folder = ROOT if path == ROOT / "nbs/index.ipynb" else path.parent
    for target in re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:|#)([^)#]+)", text):
        written_by_the_training = target.endswith("stylegen/models/pocket/README.md")
        assert written_by_the_training or (folder / target).exists(), target


def test_hooks_need_no_network() -> None:
    """Each hook before a commit is a program that `make install` or the system brings."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert list(hooks) == ["nbdev-clean", "black", "flake8", "check-sync"]
    for hook in hooks.values():
        program, *words = hook["entry"].split()
        folders = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        assert hook["language"] == "system" and shutil.which(program, path=folders)
        assert all((ROOT / word).exists() for word in words if not word.startswith("-"))


REPORT = """
tests/test_storage.py::test_bytes_are_no_manifest:
    - 200 passing, 0 failing, and 22 invalid test cases
tests/test_hostile_jobs.py::test_any_png_is_a_signature_or_an_error:
    - 40 passing examples, 2 failing examples, 1 invalid examples
FAILED tests/test_hostile_jobs.py::test_any_png_is_a_signature_or_an_error - ValueError: bad
"""


@pytest.mark.parametrize("is_good", [True, False])
def test_the_fuzzer_says_what_it_tried(
    is_good: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words of either version of hypothesis; a round that tries nothing proves nothing."""
    report = REPORT if not is_good else REPORT.partition("FAILED")[0]
    monkeypatch.setattr(fuzz, "run_round", lambda seed, tests: (report, is_good))
    assert fuzz.fuzz(0, ["tests"]) is is_good
    said = capsys.readouterr().out
    assert f"242 inputs tried, foreign exceptions {int(not is_good)}" in said
    assert is_good or "a_signature_or_an_error: ValueError: bad" in said.splitlines()[-1]
    monkeypatch.setattr(fuzz, "run_round", lambda seed, tests: ("no tests ran", True))
    assert not fuzz.fuzz(0, ["tests"])


def test_each_random_test_takes_its_number_from_the_profile() -> None:
    """Else `make fuzz` would try the same inputs again."""
    assert examples(30).max_examples == 30 and examples(30).derandomize
    assert settings.get_profile("fuzz").max_examples == 1000
    assert not settings.get_profile("fuzz").derandomize
    for path in ROOT.glob("tests/test_*.py"):
        code = path.read_text(encoding="utf-8")
        assert len(re.findall("^@given", code, re.M)) == len(re.findall("^@examples", code, re.M))


def test_what_tests_miss_by_room() -> None:
    """Statements are summed by room; what lies in no folder is the ground."""
    modules = {
        "stylegen/job.py": (10, 1),
        "stylegen/queue/__init__.py": (0, 0),
        "stylegen/queue/retries.py": (40, 10),
    }
    files = {
        path: {"summary": {"num_statements": statements, "missing_lines": missed}}
        for path, (statements, missed) in modules.items()
    }
    assert table(files).splitlines()[2:] == [
        "| ground | 1 | 10 | 1 | 90.0% |",
        "| queue | 2 | 40 | 10 | 75.0% |",
        "| all | 3 | 50 | 11 | 78.0% |",
    ]
