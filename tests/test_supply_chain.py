"""What the project is made of is known: versions, licences, the build, the font."""

import hashlib
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stylegen.signature.fonts import packaged_font

ROOT = Path(__file__).parent.parent
NOTO_SANS_KR = "69975a0ac8472717870aefeab0a4d52739308d90856b9955313b2ad5e0148d68"
"""SHA-256 of the font that comes with `pylopdf-fonts-ko` 0.1.1."""
sys.path.insert(0, str(ROOT / "tools"))
import notices  # noqa: E402  pylint: disable=wrong-import-position


def test_the_font_is_the_one_that_was_looked_at() -> None:
    """It draws customers' signatures; another file under its name is noticed."""
    font = packaged_font()
    assert font and hashlib.sha256(font.read_bytes()).hexdigest() == NOTO_SANS_KR


def test_each_requirement_is_pinned() -> None:
    """Run time, development and build: to a version that the requirement allows."""
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    named = [v for k, v in settings["DEFAULT"].items() if k.endswith("requirements")]
    versions = notices.pinned()
    for requirement in map(Requirement, " ".join(named).split()):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["build-system"]["requires"] == [f"setuptools=={versions['setuptools']}"]


def test_the_notices_are_current() -> None:
    """`make notices` would change nothing."""
    text = notices.notices()
    assert text == (ROOT / "NOTICE.md").read_text(encoding="utf-8")
    assert "not said" not in text and "| torch | " in text


def test_the_notices_know_each_package_that_a_requirement_leads_to(tmp_path: Path) -> None:
    """Through extras and markers, and in a circle."""
    for name, needs in {
        "outer": ['inner-part[more]; python_version > "3"', 'other; python_version < "3"'],
        "inner_part": ["outer", 'extra_part; extra == "more"', 'other; extra == "less"'],
        "extra_part": [],
        "other": [],
    }.items():
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", "Version: 1", *(f"Requires-Dist: {each}" for each in needs)]
        (folder / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        found = {name for name, _ in notices.needed(["outer", "not-here"])}
    finally:
        sys.path.remove(str(tmp_path))
    assert found == {"outer", "inner-part", "extra-part"}
