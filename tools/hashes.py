"""Write the digest of each file that a worker is installed from: ``requirements.txt``.

They are the files that pip would take here, so for this Python, platform and index; an image whose
base has the same is held to them. Usage: ``python tools/hashes.py``; `make hashes` calls it.
"""

import json
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "requirements.txt"


def resolve(requirements: list[str], *options: str) -> dict[str, Any]:
    """pip's report on what it would install into an empty environment."""
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    pip += ["--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*pip, *options, *requirements], stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def hashed(report: dict[str, Any]) -> str:
    """A report as requirements that `pip install --require-hashes` takes."""
    lines = []
    for each in report["install"]:
        name, version = each["metadata"]["name"], each["metadata"]["version"]
        digest = each["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    return "".join(sorted(lines, key=str.lower))


if __name__ == "__main__":
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    own = settings["DEFAULT"]
    needed = f"{own['requirements']} {own['c2pa_requirements']}".split()
    TARGET.write_text(hashed(resolve(needed, "-c", str(ROOT / "constraints.txt"))), "utf-8")
    print(TARGET)
