"""Public names are the field's words: `tools/words.py` finds those that are not."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from words import TABLE, wrong  # noqa: E402  pylint: disable=wrong-import-position,import-error

MODULE = """
import replace

# %% ../../nbs/queue/02_delivery.ipynb #8ac71ef0
TALLEST, width = 3, 4
_SHRUNK = 2


class JobThread:
    generation: int
    replaced: bool

    def __init__(self, told: bool) -> None:
        mark = told

    def once(self, *more: int, tells: int = 0) -> None:
        pass

    def _later(self, known: int) -> None:
        pass


# %% ../../nbs/queue/02_delivery.ipynb #00b5e4c1
async def adopt(facts: dict[str, int]) -> None:
    pass
"""


def test_the_package() -> None:
    """It has none of the words, by the command that `make check` runs."""
    subprocess.run([sys.executable, str(ROOT / "tools/words.py")], check=True)


def test_each_word_is_found(tmp_path: Path) -> None:
    """With its notebook, its line and the field's name; private names and locals are free."""
    for room in ("queue", "playground"):
        path = tmp_path / f"stylegen/{room}/delivery.py"
        path.parent.mkdir(parents=True)
        path.write_text(MODULE, encoding="utf-8")
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    complaints = list(wrong(tmp_path, table))
    in_queue = [each for each in complaints if "stylegen/queue" in each]
    assert [each.split(": ")[1].split(" ")[0] for each in in_queue] == [
        *("TALLEST", "JobThread", "generation", "told", "once", "more", "facts")
    ]
    assert in_queue[1] == (
        "nbs/queue/02_delivery.ipynb cell 8ac71ef0, stylegen/queue/delivery.py:9: "
        "JobThread → JobExecutor"
    )
    assert "cell 00b5e4c1, " in in_queue[-1]
    in_playground = [each for each in complaints if "stylegen/playground" in each]
    assert len(complaints) == 15 and any("adopt → register" in each for each in in_playground)


def test_a_module_without_a_notebook(tmp_path: Path) -> None:
    """It is named itself."""
    (tmp_path / "stylegen").mkdir()
    (tmp_path / "stylegen/own.py").write_text("def hush() -> None: ...\n", encoding="utf-8")
    assert list(wrong(tmp_path, {"everywhere": {"hush": "quiet_libraries"}})) == [
        "stylegen/own.py:1: hush → quiet_libraries"
    ]
