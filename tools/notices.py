"""Write the licences of what the worker is made of, from its packages' metadata: ``NOTICE.md``.

Usage: ``python tools/notices.py``; `make notices` calls it.
"""

from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "NOTICE.md"
MARK = "<!-- packages -->\n"
"""What stands before it in the file is written by hand."""
HEAD = "| package | version | licence |\n|---|---|---|\n"


def pinned() -> dict[str, str]:
    """Each package's version by its canonical name, from the constraints."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def installed(requirement: Requirement) -> Distribution | None:
    """What is here by a requirement's name, if anything."""
    try:
        return distribution(requirement.name)
    except PackageNotFoundError:
        return None


def needed(requirements: list[str]) -> Iterator[tuple[str, Distribution]]:
    """The packages that requirements lead to: canonical names, each perhaps more than once."""
    todo, done = [(Requirement(each), "") for each in requirements], set()
    while todo:
        requirement, extra = todo.pop()
        marker, found = requirement.marker, installed(requirement)
        if found is None or (marker and not marker.evaluate({"extra": extra})):
            continue
        yield canonicalize_name(requirement.name), found
        for asked in {"", *requirement.extras}:
            if (key := (requirement.name, asked)) not in done:
                done.add(key)
                todo += [(Requirement(each), asked) for each in found.requires or ()]


def licence(package: Distribution) -> str:
    """What a package says of its licence: an expression, a classifier, or its own words."""
    metadata = package.metadata
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    named = " or ".join(c.rpartition(" :: ")[2] for c in classifiers)
    own_words = (metadata.get("License") or "not said").splitlines()[0]
    return metadata.get("License-Expression") or named or own_words


def notices() -> str:
    """The file's text."""
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    own = settings["DEFAULT"]
    versions = pinned()
    found = dict(needed(f"{own['requirements']} {own['c2pa_requirements']}".split()))
    rows = [
        f"| {name} | {versions[name]} | {licence(package)} |"
        for name, package in sorted(found.items())
        if name in versions
    ]
    text = TARGET.read_text(encoding="utf-8").partition(MARK)[0]
    return text + MARK + HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    TARGET.write_text(notices(), encoding="utf-8")
    print(TARGET)
