"""What notebooks owe each other, and what runs them as tests notices."""

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import v4
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))
sys.path.insert(0, str(ROOT / "tools"))
from rooms import too_long  # noqa: E402  pylint: disable=wrong-import-position,import-error


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_silences_the_next(path: Path) -> None:
    """nbdev runs several in one process; `logging.disable` hides warnings that another asserts."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if "logging.disable(" in "".join(cell["source"])]


def test_no_export_cell_is_too_long() -> None:
    """A class or function that needs more is two ideas, each with what it shows."""
    assert not [said for path in NOTEBOOKS for said in too_long(path)]


def test_an_export_cell_that_is_too_long_is_named(tmp_path: Path) -> None:
    """By file and cell; its directive is no line, and what is not exported may be any length."""
    cells = [("\n".join(["# | export", *["a = 1"] * lines]), None) for lines in (40, 41)]
    path = write(tmp_path / "long.ipynb", ("\n".join(["a = 1"] * 50), None), *cells)
    assert list(too_long(path)) == [f"{path}: export cell 2 has 41 lines, over 40"]


def shown(image: Image.Image, *kinds: str) -> Any:
    """An output with a picture, as Pillow gives it to a notebook."""
    data = {"text/plain": f"<PIL.Image.Image image mode=RGB size={image.width}x{image.height}>"}
    for kind in kinds:
        buffer = BytesIO()
        image.save(buffer, kind)
        data[f"image/{kind}"] = b64encode(buffer.getvalue()).decode()
    return v4.new_output("execute_result", data, execution_count=None)


def write(path: Path, *cells: tuple[str, Any]) -> Path:
    """A notebook of cells, each with its output or None; without counts, as nbdev cleans them."""
    nodes = [
        v4.new_code_cell(source, outputs=[] if output is None else [output])
        for source, output in cells
    ]
    nbformat.write(v4.new_notebook(cells=nodes), str(path))
    return path


def validated(folder: Path, *options: str) -> dict[str, list[str]]:
    """Outcomes of the cells of a folder's notebooks under nbval, with the root's `conftest.py`."""
    shutil.copy(ROOT / "conftest.py", folder)
    paths = os.pathsep.join(str(ROOT / name) for name in ("tools", "tests"))
    command = [sys.executable, "-m", "pytest", "-v", "--nbval", "--nbval-current-env", *options]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        check=False,
    )
    outcomes: dict[str, list[str]] = {}
    line = r"(\w+)::ipynb::Cell \d+ (PASSED|FAILED|XFAIL|SKIPPED|ERROR)"
    for name, outcome in re.findall(line, done.stdout.decode()):
        outcomes.setdefault(name, []).append(outcome)
    return outcomes


def square(side: int = 64, shade: int = 100, spot: int = 0) -> Image.Image:
    """A picture; with a spot, of another colour in its corner."""
    image = Image.new("RGB", (side, side), (shade, 50, 200))
    image.paste((250, 250, 250), (0, 0, spot, spot))
    return image


def _with_pictures(path: Path) -> None:
    """Cells that draw a square, and have other pictures stored."""
    again = "square()"
    write(
        path,
        (
            "from PIL import Image\n\n\n"
            "def square(**_):\n"
            '    return Image.new("RGB", (64, 64), (100, 50, 200))',
            None,
        ),
        (again, shown(square(), "png", "jpeg")),
        (again, shown(square(shade=102), "png", "jpeg")),
        (again, shown(square(spot=2), "png", "jpeg")),
        (again, shown(square(shade=105), "png", "jpeg")),
        (again, shown(square(spot=3), "png", "jpeg")),
        (again, shown(square(shade=180), "png", "jpeg")),
        (f"{again}  # no JPEG is stored", shown(square(), "png")),
        (again, shown(square(spot=8), "png", "jpeg")),
        (f"# NBVAL_IGNORE_OUTPUT\n{again}", shown(square(spot=64), "png", "jpeg")),
        ("square().resize((32, 64))", shown(square(), "png", "jpeg")),
        (f"# | eval: false\n{again}", shown(square(spot=64), "png", "jpeg")),
    )


HANGS = "import threading\n\nthreading.Event().wait()"
WARNS = "import sys\n\n_ = sys.stderr.write('a library warns')"
FAILS = """
import threading


def wrong():
    assert False, "in a thread"


thread = threading.Thread(target=wrong)
thread.start()
thread.join()
"""


@pytest.fixture(scope="module", name="outcomes")
def _outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What nbval says of each notebook; they share a run, which takes seconds to begin."""
    folder = tmp_path_factory.mktemp("notebooks")
    _with_pictures(folder / "pictures.ipynb")
    cells = ("a = 1", "1 + 1", "print(2)", WARNS, "# NBVAL_IGNORE_OUTPUT\nprint(2)")
    write(folder / "bare.ipynb", *((cell, None) for cell in cells))
    write(folder / "fails.ipynb", (FAILS, None))
    write(folder / "hangs.ipynb", ("a = 1", None), (HANGS, None), ("a = 2", None))
    return validated(folder, "--nbval-cell-timeout", "5")


def test_a_falsified_picture_is_noticed(outcomes: dict[str, list[str]]) -> None:
    """A stored one that is not what the cell draws; rounding is no difference."""
    assert outcomes["pictures"] == [
        *["PASSED"] * 3,
        *["PASSED", "FAILED", "FAILED", "FAILED", "FAILED", "FAILED"],
        *["PASSED", "FAILED", "SKIPPED"],
    ]


def test_what_a_cell_shows_must_be_stored(outcomes: dict[str, list[str]]) -> None:
    """A value, a printed line or a picture; what libraries warn of is theirs."""
    assert outcomes["bare"] == ["PASSED", "FAILED", "FAILED", "PASSED", "PASSED"]


def test_no_cell_hangs_for_ever(outcomes: dict[str, list[str]]) -> None:
    """Under nbval; the limit that `make` gives is minutes."""
    assert outcomes["hangs"][:2] == ["PASSED", "FAILED"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (seconds,) = re.findall(r"--nbval-cell-timeout (\d+)", makefile)
    assert int(seconds) <= 600 and "tools/nbdev_tests.py" in makefile


def test_a_threads_assertion_fails_the_notebook(
    outcomes: dict[str, list[str]], tmp_path: Path
) -> None:
    """Under nbval, by the words on stderr; as nbdev runs it, and there no cell hangs either."""
    assert outcomes["fails"] == ["FAILED"]
    good = write(tmp_path / "good.ipynb", ("assert 1 + 1 == 2", None))
    fails = write(tmp_path / "fails.ipynb", (FAILS, None))
    hangs = "import threading\ntry:\n    threading.Event().wait()\nexcept Exception:\n    pass"
    stays = write(tmp_path / "hangs.ipynb", (hangs, None), ("1 / 0", None))
    code = (
        "import sys; from pathlib import Path; import nbdev_tests; nbdev_tests.CELL_SECONDS = 1; "
        "print([nbdev_tests.test_nb(Path(name))[0] for name in sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, good, fails, stays, good],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "[True, False, False, True]", done.stderr
    assert "in a thread" in done.stderr and "longer than 1 seconds" in done.stderr


def test_a_threads_assertion_fails_the_test(tmp_path: Path) -> None:
    """By the project's own configuration of pytest."""
    body = FAILS.strip().replace("\n", "\n    ")
    (tmp_path / "test_threads.py").write_text(f"def test_it():\n    {body}\n", encoding="utf-8")
    options = ["-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "in a thread" in done.stdout
