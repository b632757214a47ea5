"""Where the benches keep their figures, with the machine, the versions and the commit."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The CPU's model, where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    """The checkout's commit; ``BENCH_COMMIT`` names it where the tree has come without git."""
    if given := os.environ.get("BENCH_COMMIT"):
        return given
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def where(*libraries: str) -> dict[str, Any]:
    """The machine, the versions of some distributions, and the commit."""
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {library: version(library) for library in libraries},
        "commit": commit(),
    }


def write(path: Path, result: dict[str, Any]) -> Path:
    """Write figures as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return part.replace(path)


def store(name: str, result: dict[str, Any], *libraries: str) -> Path:
    """Write a result down, with where and by what it was measured.

    Args:
        name: Of the file, without its ending.
        result: The figures.
        libraries: Distributions whose versions matter.

    Returns:
        The file.
    """
    return write(RESULTS / f"{name}.json", where(*libraries) | result)
