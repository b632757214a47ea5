"""The bench of a GPU without one: its stages, its packed folder, its table."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from waiting import wait_until

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tools")]
# pylint: disable=wrong-import-position
import gpu  # noqa: E402
import gpu_table  # noqa: E402
import pack_gpu  # noqa: E402
from stages import Record, Stage, run  # noqa: E402

# The stages


class Device:
    """What stages share here: a count of those that it was there for; it may be lost."""

    def __init__(self, commit: str = "abc") -> None:
        self.commit, self.stages, self.is_lost = commit, 0, False

    def facts(self) -> dict[str, Any]:
        """A device."""
        return {"device": "Test 1", "sizes": "full", "commit": self.commit, "stages": self.stages}

    def forget(self) -> None:
        """Counts; raises once it is lost."""
        self.stages += 1
        if self.is_lost:
            raise RuntimeError("CUDA error")


def good(_: Device, record: Record) -> None:
    """A figure."""
    record("seconds", 1.5)


def bad(_: Device, record: Record) -> None:
    """A figure, then a failure."""
    record("seconds", 2.5)
    raise ValueError("no such layer")


def slow(_: Device, record: Record) -> None:
    """A figure, then for ever, in a process of its own; its number is another figure."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)"]) as process:
        record("process", process.pid)


def lost(device: Device, _: Record) -> None:
    """The device is gone."""
    device.is_lost = True


def died(_: Device, record: Record) -> None:
    """The process is gone, as by the system's out-of-memory killer."""
    record("seconds", 3.5)
    os._exit(9)


def stage(work: str, seconds: float = 30, name: str = "") -> Stage:
    """A stage that does one of these."""
    return Stage(name or work, seconds, f"{__name__}:{work}")


def go(tmp_path: Path, *stages: Stage, minutes: float = 1, commit: str = "abc") -> dict[str, Any]:
    """Run stages; what the file says of them."""
    path = tmp_path / "results.json"
    run(stages, partial(Device, commit), lambda facts: path, minutes, say=lambda text: None)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_what_fails_stops_no_other(tmp_path: Path) -> None:
    """Figures that were had are kept, whatever ends a stage; the next one is done all the same."""
    stages = go(tmp_path, *(stage(name) for name in ("bad", "lost", "died", "good")))
    ends = {name: stage["status"] for name, stage in stages.items()}
    assert ends == {
        "bad": "failed: ValueError: no such layer",
        "lost": "done",
        "died": "failed: its process ended with 9",
        "good": "done",
    }
    assert stages["bad"]["figures"] == {"seconds": 2.5}
    assert stages["died"]["figures"] == {"seconds": 3.5}
    assert stages["good"]["stages"] == 1, "a new process after one that was gone"


def test_time_is_kept(tmp_path: Path) -> None:
    """A stage ends with its time and takes all that it started along; then the next one begins."""
    began = time.monotonic()
    stages = go(tmp_path, stage("slow", 1), stage("good"))
    assert stages["slow"]["status"] == "out of time" and stages["good"]["status"] == "done"
    assert stages["slow"]["seconds"] < 5 and time.monotonic() - began < 30
    wait_until(lambda: not is_running(stages["slow"]["figures"]["process"]))


def is_running(number: int) -> bool:
    """Whether there is such a process, and somebody has not only forgotten to bury it."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_whole_has_its_time(tmp_path: Path) -> None:
    """What could not begin any more is said to be so."""
    stages = go(tmp_path, stage("slow", 60), stage("good"), minutes=0.06)
    assert stages["slow"]["status"] == "out of time"
    assert stages["good"]["status"] == "not begun: no time left"


def test_a_second_run_goes_on(tmp_path: Path) -> None:
    """What is done is not done again, by the same commit; what is not is tried again."""
    go(tmp_path, stage("good", name="first"), stage("bad", name="second"))
    stages = go(tmp_path, stage("bad", name="first"), stage("good", name="second"))
    assert [stage["status"] for stage in stages.values()] == ["done", "done"]
    again = go(tmp_path, stage("bad", name="first"), commit="def")
    assert again["first"]["status"].startswith("failed") and again["first"]["commit"] == "def"


def test_a_process_that_cannot_begin(tmp_path: Path) -> None:
    """No stage is blamed for it, and it is not tried for ever."""
    with pytest.raises(SystemExit, match="could not begin|before it could begin"):
        run([stage("good")], partial(Device, 1, 2), lambda facts: tmp_path, 1)


# The table


def test_a_table_of_every_goal() -> None:
    """Without a card all that only a card tells is open."""
    text = gpu_table.table(Path("nowhere"))
    assert text.startswith("No card") and text.count("| open |") == len(gpu_table.GOALS) - 2


def test_a_table_of_a_card(tmp_path: Path) -> None:
    """Ratios are taken of the stages' figures; what misses its goal is said to."""
    facts = {"device": "Card 1", "sizes": "full", "commit": "abc", "versions": {"torch": "2.11"}}

    def ended(status: str, **figures: Any) -> dict[str, Any]:
        return {"status": status, **facts, "figures": figures}

    peers = {"P1, s a picture": {"median": 1.2}, "ours, batch 8, s a picture": {"median": 0.3}}
    peers |= {"P4, batch 8, s a picture": {"median": 0.3}}
    stages = {
        "peaks": ended("done", matmul_tflops=700.0),
        "peers": ended("done", **peers),
        "tuned": ended("out of time", **{"ours, batch 8, s a picture": {"median": 0.1}}),
        "end to end": ended("done", **{"guided steps a second": 200, "pictures a second": 4.0}),
        "correctness": ended("done", one="passed", two="failed"),
    }
    (tmp_path / "gpu-card-1.json").write_text(json.dumps(stages), encoding="utf-8")
    lines = gpu_table.table(tmp_path).splitlines()
    assert lines[0] == (
        "**Card 1**, torch 2.11, commit abc. 1 of 2 tests on the card passed. Whole jobs took 46%"
        " of the card's own matmul peak. Not done: tuned: out of time."
    )
    shown = dict(re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", "\n".join(lines), re.MULTILINE))
    assert shown["throughput at batch 8 against P1, stock diffusers"] == "12×"
    assert shown["throughput at batch 8 against P4, one LoRA for all"] == "1×"
    assert shown["pictures a second, whole jobs, 16 at batch 8"] == "4"
    assert shown["cold start to the first picture"] == "open"
    stages["end to end"]["figures"]["pictures a second"] = 3.5
    (tmp_path / "gpu-card-1.json").write_text(json.dumps(stages), encoding="utf-8")
    assert "| 3.5, **not met** |" in gpu_table.table(tmp_path)


# The packed folder

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


FIRST = ["correctness", "notebooks", "locon"]
HALVES = (FIRST, [each.name for each in gpu.STAGES if each.name not in FIRST])
"""Of the stages: two processes take less time than one."""


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


def test_a_job_that_fails_is_no_picture(tmp_path: Path) -> None:
    """Whole jobs are counted only if each of them came to a picture."""
    from gpu_stages import SMALL, GpuBench, whole_jobs

    from stylegen.job import OutOfMemory

    engine, figures = Mock(draw=Mock(side_effect=OutOfMemory("acted"))), Mock()
    with pytest.raises(RuntimeError, match="OUT_OF_MEMORY"):
        whole_jobs(GpuBench("cpu", SMALL, tmp_path), figures, engine)
    figures.assert_not_called()


def test_the_trained_model_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows training, on the packaged model: each style's figures, bars, an archive."""
    import gpu_train
    from gpu_stages import SMALL, GpuBench

    from stylegen.pocket import STYLES, packaged

    monkeypatch.setattr(gpu_train, "MODELS", packaged())
    figures: dict[str, Any] = {}
    gpu_train.judge(GpuBench("cpu", SMALL, tmp_path), figures.__setitem__)
    assert set(figures) == {f"{s}: {k}, %" for s in STYLES for k in gpu_train.BARS} | {
        "below the bars"
    }
    assert gpu_train.archive(tmp_path).stat().st_size < 16 * 2**20
