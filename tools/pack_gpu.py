"""Pack what a machine with a GPU lacks, so that `bench/gpu.py` runs there without a network.

Usage: ``make gpu-pack``, or ``python tools/pack_gpu.py [--python 3.12]``, which fills ``.gpu``.
The machine is to have Python, pip, torch, transformers and peft. The folder gets a wheel of
everything else, each once, and a script. It travels with the checkout, together at most 60 MiB; the
line to run there is printed.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from stored import commit  # noqa: E402  pylint: disable=wrong-import-position,import-error

GIVEN = ("torch", "transformers", "peft")
"""What the machine has, with all that they require."""
NOT_NEEDED = ("ipywidgets", "boto3")
"""Requirements of ours that no stage uses: there is neither a panel nor a bucket."""
TESTS = ("pytest", "pytest-timeout", "fastcore")
GLIBC = (17, 27, 28)
"""Of the platforms whose wheels are taken, as manylinux names them; pip matches each exactly."""
MOST_BYTES = 60 * 2**20
SCRIPT = """\
#!/bin/sh
# Installs what this machine lacks into a folder of its own (no path may have a blank), then runs
# bench/gpu.py.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
missing=$(python3 - "$here" <<'END'
import importlib.metadata, pathlib, sys
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    try:
        importlib.metadata.version(wheel.name.partition("-")[0])
    except importlib.metadata.PackageNotFoundError:
        print(wheel)
END
)
[ -z "$missing" ] ||
    python3 -m pip install --quiet --no-index --no-deps --target "$site" $missing
export BENCH_COMMIT={commit} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
cd "$here/.."
export PYTHONPATH="$site:$PWD"
python3 bench/gpu.py "$@"
"""


def plain(name: str) -> str:
    """A distribution's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(requirement: Requirement, python: str) -> Iterator[Requirement]:
    """What a distribution that is installed here requires on that machine."""
    extras = ["", *requirement.extras]
    machine = {"python_version": python, "python_full_version": f"{python}.0"}
    machine |= {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"}
    for line in distribution(requirement.name).requires or ():
        needed = Requirement(line)
        marker = needed.marker
        if marker is None or any(marker.evaluate(machine | {"extra": extra}) for extra in extras):
            yield needed


def closure(names: Iterable[str], python: str, without: frozenset[str] = frozenset()) -> set[str]:
    """Names of distributions and of all that they require, leaving some and what is behind out."""
    found: set[str] = set()
    todo = [Requirement(name) for name in names]
    seen: set[str] = set()
    while todo:
        one = todo.pop()
        if str(one) in seen or plain(one.name) in without:
            continue
        seen.add(str(one))
        found.add(plain(one.name))
        todo += required(one, python)
    return found


def lacking(python: str) -> list[str]:
    """Pinned requirements that the machine does not have, as installed here."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    ours = [Requirement(line) for line in parser["DEFAULT"]["requirements"].split()]
    given = set(GIVEN)
    for name in GIVEN:
        given |= {plain(needed.name) for needed in required(Requirement(name), python)}
    roots = [str(one) for one in ours if plain(one.name) not in NOT_NEEDED]
    names = closure([*roots, *TESTS], python, frozenset(given))
    return [f"{name}=={distribution(name).version}" for name in sorted(names)]


def download(pins: list[str], python: str, folder: Path) -> None:
    """Fetch their wheels for that machine."""
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--python-version={python}"]
    command += ["--implementation=cp", *platforms, "--platform=manylinux2014_x86_64"]
    subprocess.run([*command, f"--dest={folder}", *pins], check=True)


def tree_files() -> list[Path]:
    """The checkout's files, as they travel: those that git does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    return [path for name in names if name and (path := ROOT / name.decode()).is_file()]


def pack(folder: Path, python: str) -> int:
    """Fill the folder anew.

    Args:
        folder: At the top of a checkout, which the script works on.
        python: The machine's version.

    Returns:
        Bytes that travel, the checkout's included.

    Raises:
        SystemExit: They are too many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    download(lacking(python), python, folder)
    text = SCRIPT.replace("{commit}", commit())
    (folder / "run.sh").write_text(text, encoding="utf-8")
    wheels = sum(path.stat().st_size for path in folder.iterdir())
    whole = wheels + sum(path.stat().st_size for path in tree_files())
    megabytes = f"{wheels / 2**20:.1f} MiB, with the checkout {whole / 2**20:.1f} MiB"
    print(f"{len(list(folder.glob('*.whl')))} wheels for Python {python} in {folder}: {megabytes}")
    if whole > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES // 2**20} MiB")
    return whole


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--python", default="3.12", help="the machine's; default 3.12")
    pack(ROOT / ".gpu", arguments.parse_args().python)
    print("on the machine, in the checkout: sh .gpu/run.sh --minutes 8")
