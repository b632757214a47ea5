"""The package as users get it: sdist, wheel from that sdist, and its commands in a clean venv."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from conftest import TOKEN
from rabbit import Broker

from stylegen.settings import Settings
from stylegen.webhook import WebhookReceiver

ROOT = Path(__file__).parent.parent
PART_OF = {
    "botocore": "boto3",
    "pydantic-core": "pydantic",
    "s3transfer": "boto3",
    "traitlets": "ipywidgets",
    "urllib3": "requests",
    "huggingface-hub": "diffusers",
}
"""Distributions that are imported and not required by name, and whose requirement they are."""


def run(*command: str | Path, expect: int = 0, **options: object) -> str:
    """Run a command, which sees no checkout on Python's path; returns what it printed."""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"env": bare} | options
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=240, **options
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def facts() -> dict[str, str]:
    """What settings.ini says."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist of what git knows, and the wheel that is built from the sdist alone."""
    folder, checkout = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("checkout")
    for name in run("git", "ls-files", cwd=ROOT).splitlines():  # no earlier build's list of files
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def commands(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a new venv with nothing but the wheel in it.

    Dependencies are borrowed from the venv of the tests, by a path file: a second torch would cost
    gigabytes. So the commands' success does not show that the wheel asks for all it needs;
    `test_each_import_is_required` does. The editable install there is not seen, since path files
    do not nest.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--no-index", "--no-deps", "--quiet", built["wheel"])
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def tracked_package_files() -> set[str]:
    """What git knows of the package."""
    return set(run("git", "ls-files", "stylegen", cwd=ROOT).split())


def test_nothing_is_left_out(built: dict[str, Path]) -> None:
    """Each file of the package, its model too, is in the sdist and in the wheel."""
    expected = tracked_package_files()
    assert "stylegen/worker/__init__.py" in expected
    with zipfile.ZipFile(built["wheel"]) as wheel:
        assert expected <= set(wheel.namelist())
        assert any(name.endswith("/NOTICE.md") for name in wheel.namelist())
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    beside = {"settings.ini", "LICENSE", "NOTICE.md", "README.md", "README.ko.md"}
    beside |= {"nbs/worker/index.ipynb", "docs/asyncapi.yaml"}
    assert expected | beside <= names
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = set(re.findall(r"!\[[^\]]*\]\((?!https?:)([^)]+)\)", readme))
    assert pictures and pictures <= names


def test_make_names_the_python_that_it_needs(tmp_path: Path) -> None:
    """An older Python is told so in one line, before anything is made."""
    older = tmp_path / "python"
    age = "import sys; sys.version_info = (3, 10, 12); exec(sys.argv[1])"
    older.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{age}' \"$2\"\n", encoding="utf-8")
    older.chmod(0o755)
    command = ["make", "install", f"PYTHON={older}", f"VENV={tmp_path}/venv"]
    bare = {
        name: value for name, value in os.environ.items() if "MAKE" not in name
    }  # ours has jobs
    options: dict[str, Any] = {"cwd": ROOT, "env": bare, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=60, check=False, **options)
    assert done.returncode != 0 and done.stderr.startswith("needs Python 3.11 or later")
    assert not (tmp_path / "venv").exists()


def distributions(requirements: list[str]) -> set[str]:
    """Their names, as package indexes compare them; those of extras left out."""
    plain = [each for each in requirements if "extra ==" not in each]
    names = [re.match(r"[\w.-]+", each)[0] for each in plain]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def imported(source: str) -> set[str]:
    """The top-level modules that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"stylegen"}


def test_each_import_is_required(built: dict[str, Path]) -> None:
    """Each third-party import of the wheel is of a distribution that installing it brings.

    That is one the wheel's metadata names (``c2pa`` by its extra), or one of `PART_OF`. This reads
    metadata, and so needs no second installation of torch; it does not prove that the lower bounds
    of the versions suffice.
    """
    with zipfile.ZipFile(built["wheel"]) as wheel:
        modules = [name for name in wheel.namelist() if re.fullmatch(r"stylegen/.*\.py", name)]
        imports = set().union(*(imported(wheel.read(name).decode()) for name in modules))
        (metadata,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        named = message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist", [])
    brought, owners = distributions(named), packages_distributions()
    for part, whole in PART_OF.items():
        assert whole in brought and part in distributions(requires(whole) or [])
    brought |= set(PART_OF)
    missing = {name for name in imports if not distributions(owners.get(name, [])) & brought}
    assert {"torch", "PIL"} <= imports and missing == {"c2pa", "cryptography"}
    for extra in ("c2pa-python", "cryptography"):
        assert any(each.startswith(extra) and "extra" in each for each in named)


def test_version_is_one(built: dict[str, Path], commands: Path) -> None:
    """settings.ini, file names, the module and the changelog name one version."""
    version = facts()["version"]
    assert built["wheel"].name.startswith(f"stylegen-{version}-")
    assert built["sdist"].name == f"stylegen-{version}.tar.gz"
    where = run(
        commands / "python",
        "-c",
        "import stylegen; print(stylegen.__file__, stylegen.__version__)",
        cwd="/",
    ).split()
    assert Path(where[0]).is_relative_to(commands.parent)
    assert where[1] == version
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


SCRIPTS = dict(line.split("=") for line in facts()["console_scripts"].split())
"""Each command of the package, with its function as ``module:name``."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_answers_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its function is there, and says what the command is for, under its own name."""
    module, function = SCRIPTS[name].split(":")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        getattr(import_module(module), function)()
    text = capsys.readouterr().out
    assert end.value.code in (0, None)
    assert text.startswith(f"usage: {name} ") or name == "stylegen-worker"  # says worker.py
    assert len(text.splitlines()) > 3


def test_commands_explain_themselves(commands: Path) -> None:
    """Each is installed; without settings the worker's two name what is missing, with code 2."""
    for name in SCRIPTS:
        assert run(commands / name, "--help", cwd="/").startswith("usage: ")
    text = run(commands / "stylegen-worker", "--help", cwd="/")
    assert "--job" in text
    assert all(name.upper() in text for name in Settings.model_fields)
    for name in ("stylegen-worker", "stylegen-check"):
        bare = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
        run(commands / name, expect=2, cwd="/", env=bare)


def test_a_job_from_the_wheel(
    commands: Path, rabbit: Broker, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """Model, check, job: a picture is drawn by the installed package alone."""
    run(commands / "python", "-m", "stylegen.pocket", tmp_path, cwd="/")
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_ORIGINS": backend.url,
        "RABBITMQ_URL": rabbit.url,
        "STYLEGEN_STORAGE_FOLDER": str(tmp_path),
        "STYLEGEN_MODEL": str(tmp_path / "pocket"),
        "STYLEGEN_DEVICE": "cpu",
    }
    assert "no:" not in run(commands / "stylegen-check", env=environment, cwd="/")
    job = {
        "generation_id": 1,
        "style_id": 10,
        "lora_model_url": "s3://models/watercolour.safetensors",
        "prompt_tags": ["red", "heart"],
        "artist_name": "김하늘",
        "webhook_url": backend.url,
        "num_inference_steps": 2,
    }
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    run(commands / "stylegen-worker", "--job", tmp_path / "job.json", env=environment, cwd="/")
    (done,) = backend.wait_for(1, "complete", timeout=5)
    picture = Path(done.body["result_url"].removeprefix("file://"))
    assert picture.read_bytes().startswith(b"\xff\xd8")
