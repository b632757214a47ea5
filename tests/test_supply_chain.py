"""What the project is made of is known: versions, licences, the build, the font."""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stylegen.signature.fonts import packaged_font

ROOT = Path(__file__).parent.parent
NOTO_SANS_KR = "69975a0ac8472717870aefeab0a4d52739308d90856b9955313b2ad5e0148d68"
"""SHA-256 of the font that comes with `pylopdf-fonts-ko` 0.1.1."""
sys.path.insert(0, str(ROOT / "tools"))
import hashes  # noqa: E402  pylint: disable=wrong-import-position
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


def sbom_commands() -> list[str]:
    """What `make sbom` would run, with this environment for its own."""
    own = f"BIN={Path(sys.executable).parent}"
    command = ["make", "--no-print-directory", "-n", "-o", "install", "sbom", own]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def there_is_a_registry() -> bool:
    """Whether pip gets the tool, of whatever version; a folder of wheels is no registry."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    with TemporaryDirectory() as folder:
        command = [*pip, "--retries", "1", "--dest", folder, "cyclonedx-bom"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_registry_is_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same variables that `make sbom` heeds."""
    write_wheel(tmp_path, "cyclonedx_bom")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert there_is_a_registry()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    assert not there_is_a_registry()


def test_the_bill_of_materials(tmp_path: Path) -> None:
    """Each installed package with its version, no other, and no time; offline there is no tool."""
    *preparing, making = sbom_commands()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for line in (*preparing, f"{making} --no-validate"):  # its schema takes half a minute
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        if done.returncode and " install " in line and not there_is_a_registry():
            pytest.skip(f"no registry: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/sbom.json").read_text(encoding="utf-8")
    bill = json.loads(text)
    listed = {canonicalize_name(each["name"]): each["version"] for each in bill["components"]}
    assert listed == {canonicalize_name(each.name): each.version for each in distributions()}
    assert all(each.get("purl") for each in bill["components"] if each["name"] != "stylegen")
    assert "timestamp" not in text and "serialNumber" not in bill
    needs = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    (ours,) = [needs[ref] for ref in needs if ref.startswith("stylegen==")]
    assert {ref.partition("==")[0] for ref in ours} >= {"torch", "diffusers", "pika"}


def write_wheel(folder: Path, name: str, needs: str = "") -> Path:
    """A wheel with no module in it."""
    path, info = folder / f"{name}-1-py3-none-any.whl", f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{needs}"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_no_other_file_is_installed(tmp_path: Path) -> None:
    """By the digests that `make hashes` writes, also of what a requirement leads to."""
    write_wheel(tmp_path, "outer", "Requires-Dist: inner\n")
    inner = write_wheel(tmp_path, "inner")
    index = ("--no-index", "--find-links", str(tmp_path))
    written = hashes.hashed(hashes.resolve(["outer"], *index))
    digest = hashlib.sha256(inner.read_bytes()).hexdigest()
    assert f"inner==1 --hash=sha256:{digest}" in written.splitlines()
    (tmp_path / "requirements.txt").write_text(written, "ascii")
    pip = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", *index]
    pip += ["--target", str(tmp_path / "to"), "-r", str(tmp_path / "requirements.txt")]
    assert subprocess.run(pip, capture_output=True, check=False).returncode == 0
    with zipfile.ZipFile(inner, "a") as wheel:
        wheel.writestr("inner.py", "")
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "DO NOT MATCH THE HASHES" in done.stderr
