"""The packed folder of ``make gpu-pack`` in small: run by itself, since it is timed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tools")]
# pylint: disable=wrong-import-position
import gpu  # noqa: E402
import pack_gpu  # noqa: E402

NO_NETWORK = """
import sys

def refuse(event, given):
    if event == "socket.getaddrinfo" and given[0] not in ("localhost", "127.0.0.1", "", None):
        raise OSError(f"no network here: {given[0]}")
    if event == "socket.connect" and isinstance(given[1], tuple) and given[1][0][:4] != "127.":
        raise OSError(f"no network here: {given[1]}")

sys.addaudithook(refuse)
"""


@pytest.fixture(scope="module", name="machine")
def _machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A Python with torch, transformers and peft, and a checkout without git, with its pack."""
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in pack_gpu.closure([*pack_gpu.GIVEN, "pip"], python):
        files = pack_gpu.distribution(name).files or []
        for top in {Path(file).parts[0] for file in files} - {"..", "__pycache__"}:
            there = Path(str(pack_gpu.distribution(name).locate_file(top)))
            if there.exists() and not (site / top).exists():
                (site / top).symlink_to(there)
    (site / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    tree = folder / "tree"
    for file in pack_gpu.tree_files():
        copy = tree / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, copy)
    pack_gpu.pack(tree / ".gpu", python)
    yield folder / "venv/bin", tree


def on_machine(machine: tuple[Path, Path], *command: str) -> subprocess.Popen[str]:
    """Start a command there, with nothing of this environment but the processor's threads."""
    binaries, tree = machine
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(tree), "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=tree, env=environment, text=True, **options)


def test_the_machine_lacks_what_is_packed(machine: tuple[Path, Path]) -> None:
    """Neither diffusers nor anything of ours is there, nor a network; torch is."""
    code = (
        "import torch, transformers, peft\ntry:\n import diffusers\nexcept ImportError: print('no')"
    )
    said, _ = on_machine(machine, "python3", "-c", code).communicate()
    assert said.endswith("no\n"), said
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    said, _ = on_machine(machine, "python3", "-c", code).communicate()
    assert "no network here" in said
    packed = {pin.partition("==")[0] for pin in pack_gpu.lacking("3.12")}
    assert {"diffusers", "pika", "pytest"} <= packed and not packed & {"torch", "numpy", "boto3"}


FIRST = ["correctness", "notebooks", "locon", "cuda graphs"]
HALVES = (FIRST, [each.name for each in gpu.STAGES if each.name not in FIRST])
"""Of the stages: two processes take less time than one. CUDA graphs forget what was compiled."""


def test_every_line_runs_before_there_is_a_card(machine: tuple[Path, Path]) -> None:
    """The packed folder's line, in small on the CPU: every stage, and all of them done."""
    began, tree = time.monotonic(), machine[1]
    line = ["sh", ".gpu/run.sh", "--dry-run", "--minutes", "15"]
    processes = [
        on_machine(machine, *line, "--results", f"out/{number}", "--only", *half)
        for number, half in enumerate(HALVES)
    ]
    said = [process.communicate()[0] for process in processes]
    print(f"dry run: {time.monotonic() - began:.0f} s")
    stages: dict[str, Any] = {}
    for number, text in enumerate(said):
        files = list((tree / f"out/{number}").glob("gpu-*.json"))
        assert len(files) == 1, text
        stages |= json.loads(files[0].read_text(encoding="utf-8"))
    undone = {name: stage for name, stage in stages.items() if stage["status"] != "done"}
    assert not undone and [p.returncode for p in processes] == [0, 0], "\n".join(said)[-8000:]
    assert sorted(stages) == sorted(each.name for each in gpu.STAGES)
    assert set(stages["correctness"]["figures"].values()) == {"passed"}
    assert all(stage["commit"] for stage in stages.values()), "it is not told without git"
