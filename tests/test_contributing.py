"""What a contributor is offered: a map, hooks before a commit, a report of what tests miss."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))
sys.path.insert(0, str(ROOT / "tools"))
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
