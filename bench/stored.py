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


def store(name: str, result: dict[str, Any], *libraries: str) -> Path:
    """Write a result down, with where and by what it was measured.

    Args:
        name: Of the file, without its ending.
        result: The figures.
        libraries: Distributions whose versions matter.

    Returns:
        The file.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    where = {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {library: version(library) for library in libraries},
        "commit": commit.stdout.strip(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(where | result, indent=1) + "\n", encoding="utf-8")
    return path
