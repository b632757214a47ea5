"""The package as users get it: sdist, wheel from that sdist, and its commands in a clean venv."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import TOKEN
from rabbit import RabbitNode

from stylegen.webhook import WebhookReceiver

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, expect: int = 0, **options: object) -> str:
    """Run a command; returns what it printed."""
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
    """The sdist, and the wheel that is built from the sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def commands(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a new venv with nothing but the wheel in it.

    Dependencies are read from the venv of the tests, by a path file: a second torch would cost
    gigabytes. The editable install there is not seen, since path files do not nest.
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
    assert "stylegen/worker.py" in expected
    with zipfile.ZipFile(built["wheel"]) as wheel:
        assert expected <= set(wheel.namelist())
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert expected | {"settings.ini", "LICENSE", "README.md", "nbs/09_worker.ipynb"} <= names


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


def test_commands_explain_themselves(commands: Path) -> None:
    """Both commands exist; without settings they name what is missing, with code 2."""
    assert "--job" in run(commands / "stylegen-worker", "--help", cwd="/")
    for name in ("stylegen-worker", "stylegen-check"):
        bare = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
        run(commands / name, expect=2, cwd="/", env=bare)


def test_a_job_from_the_wheel(
    commands: Path, rabbit: RabbitNode, backend: WebhookReceiver, tmp_path: Path
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
