"""The bench of a GPU without one: its stages, its table, its judge."""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from waiting import wait_until

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))
# pylint: disable=wrong-import-position
import gpu_table  # noqa: E402
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
    stages = go(tmp_path, stage("slow", 4), stage("good"))
    assert stages["slow"]["status"] == "out of time" and stages["good"]["status"] == "done"
    assert stages["slow"]["seconds"] < 30 and time.monotonic() - began < 120
    wait_until(lambda: not is_running(stages["slow"]["figures"]["process"]))


def is_running(number: int) -> bool:
    """Whether there is such a process, and somebody has not only forgotten to bury it."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_whole_has_its_time(tmp_path: Path) -> None:
    """What could not begin any more is said to be so."""
    stages = go(tmp_path, stage("slow", 600), stage("good"), minutes=0.2)
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
