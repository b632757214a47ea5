"""The engine's goals on a GPU, and what the stored results of each card say of them."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stored import RESULTS

TFLOP = 0.803
"""Of SD 1.5's UNet, forward, one row at 512x512: counted, not measured."""
OPEN = "open"


@dataclass(frozen=True)
class Goal:
    """A line of the table: what is wanted of a figure, and how it comes from the results."""

    text: str
    limit: float
    unit: str
    figure: Callable[[Any], float]
    at_most: bool = False

    def row(self, stored: Any) -> str:
        """The line, in Markdown."""
        try:
            value = self.figure(stored)
        except (KeyError, TypeError, ZeroDivisionError):
            return f"| {self.text} | {self._wanted} | {OPEN} |"
        met = value <= self.limit if self.at_most else value >= self.limit
        shown = f"{value:.3g}{self.unit}" + ("" if met else ", **not met**")
        return f"| {self.text} | {self._wanted} | {shown} |"

    @property
    def _wanted(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}{self.unit}"


@dataclass(frozen=True)
class Stored:
    """A card's results; what is not there is a KeyError."""

    stages: dict[str, Any]

    def __call__(self, stage: str, name: str, part: str = "median") -> float:
        """A figure, or a part of it; those of a stage that was not done to its end count, too."""
        figure = self.stages[stage]["figures"][name]
        if isinstance(figure, dict) and figure.get("count") == 0:
            raise KeyError(f"{name} has only warmed up")
        return float(figure[part] if isinstance(figure, dict) else figure)

    def all_of(self, *places: tuple[str, str]) -> list[float]:
        """Those of some figures that are there; at least one."""
        found = []
        for stage, name in places:
            with suppress(KeyError):
                found.append(self(stage, name))
        if not found:
            raise KeyError(places)
        return found


def _ours(stored: Stored, batch: int) -> float:
    kinds = [f"ours, batch {batch}", f"ours, merged, batch {batch}"]
    places = [(stage, f"{kind}, s a picture") for stage in ("tuned", "peers") for kind in kinds]
    return min(stored.all_of(*places))


def _pictures(stored: Stored) -> float:
    stages = ("end to end, compiled", "end to end")
    return max(stored.all_of(*((stage, "pictures a second") for stage in stages)))


def _other(name: str, figure: Callable[[Any], float], _: Stored) -> float:
    """A figure of another bench, taken on a CPU."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise KeyError(name)
    return figure(json.loads(path.read_text(encoding="utf-8")))


def _scaling(scale: Any) -> float:
    rates = {fleet["workers"]: fleet["full_queue"]["jobs_per_second"] for fleet in scale["fleets"]}
    return float(rates[4] / rates[1])


MERGED = "merged, one of 8 jobs, ms"
GOALS = (
    Goal(
        "throughput at batch 8 against P1, stock diffusers",
        6,
        "×",
        lambda s: s("peers", "P1, s a picture") / _ours(s, 8),
    ),
    Goal(
        "throughput at batch 8 against P2, stock compiled and hot-swapped",
        2,
        "×",
        lambda s: s("tuned", "P2, s a picture") / s("tuned", "ours, batch 8, s a picture"),
    ),
    Goal(
        "throughput at batch 8 against P4, one LoRA for all",
        0.95,
        "×",
        lambda s: s("peers", "P4, batch 8, s a picture") / s("peers", "ours, batch 8, s a picture"),
    ),
    Goal("pictures a second, whole jobs, 16 at batch 8", 4, "", _pictures),
    Goal(
        "one job's latency against P1, LoRA change included",
        4,
        "×",
        lambda s: s("peers", "P1, s a picture") / _ours(s, 1),
    ),
    Goal(
        "one job's latency against P2, LoRA change included",
        1.6,
        "×",
        lambda s: s("tuned", "P2, s a picture") / s("tuned", "ours, batch 1, s a picture"),
    ),
    Goal("LoRA change from memory", 3, " ms", lambda s: s("change", MERGED), True),
    Goal("LoRA change from disk", 15, " ms", lambda s: s("change", "from disk, ms"), True),
    Goal(
        "LoRA change from memory against P1",
        100,
        "×",
        lambda s: s("change", "P1, ms") / s("change", MERGED),
    ),
    Goal(
        "cold start to the first picture", 10, " s", lambda s: s("cold", "first picture, s"), True
    ),
    Goal(
        "the same, compiled, with what a run before has compiled",
        25,
        " s",
        lambda s: s("cold", "first picture, compiled, s"),
        True,
    ),
    Goal(
        "worker's own time a job, not overlapped (`bench/overhead.py`, on a CPU)",
        5,
        " ms",
        partial(_other, "overhead", lambda o: float(o["idle_per_job"]["2"]["median_ms"])),
        True,
    ),
    Goal(
        "4 workers against one (`make scale`, the model a sleep)",
        3.8,
        "×",
        partial(_other, "scale", _scaling),
    ),
    Goal(
        "half precision's error against stock's",
        1.25,
        "×",
        lambda s: s("precision", "merged, error against stock's", "max"),
        True,
    ),
)
"""What the engine is to reach."""


def table(results: Path = RESULTS) -> str:
    """The goals, and what each card's stored results say of them, in Markdown.

    Args:
        results: Folder of ``gpu-*.json``.

    Returns:
        A heading and a table a card; without any, what only a card tells is open.
    """
    files = sorted(results.glob("gpu-*.json"))
    cards = [json.loads(file.read_text(encoding="utf-8")) for file in files] or [{}]
    return "\n\n".join("\n".join(_lines(Stored(stages))) for stages in cards)


def _lines(stored: Stored) -> list[str]:
    rows = [goal.row(stored) for goal in GOALS]
    return [*_heading(stored), "", "| figure | goal | measured |", "|---|---|---|", *rows]


def _heading(stored: Stored) -> list[str]:
    """Which card, which code, and how the stages ended; or that there was no card."""
    if not stored.stages:
        return ["No card has been measured yet: `make gpu` measures yours."]
    stages = list(stored.stages.values())
    facts, commits = stages[0], sorted({stage["commit"] for stage in stages})
    where = f"**{facts['device']}**" + (" (dry run)" if facts["sizes"] != "full" else "")
    said = [f"{where}, torch {facts['versions']['torch']}, commit {', '.join(commits)}."]
    undone = [f"{n}: {s['status']}" for n, s in stored.stages.items() if s["status"] != "done"]
    tests = stored.stages.get("correctness", {}).get("figures", {})
    if tests:
        good = sum(word == "passed" for word in tests.values())
        said.append(f"{good} of {len(tests)} tests on the card passed.")
    with suppress(KeyError):
        done = stored("end to end", "guided steps a second") * 2 * TFLOP
        share = done / stored("peaks", "matmul_tflops")
        if facts["sizes"] == "full":
            said.append(f"Whole jobs took {share:.0%} of the card's own matmul peak.")
    if undone:
        said.append(f"Not done: {'; '.join(undone)}.")
    return [" ".join(said)]
