"""Serving under load: long-tailed traces through the real loop, beside other ways to batch.

Usage: ``python bench/serving.py [--jobs N] [--table]``. The clock is the bench's own: a step takes
`STEP` seconds however many pictures take it, as on a card that is bound by launches, and encoding
and decoding take none. All else, who begins, joins, is set aside or ends, is the engine's.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from stored import RESULTS, store

from stylegen.job import GenerationJob
from stylegen.pipeline.admission import choose_next
from stylegen.pipeline.loop import ActiveBatch, Loop, take_turn
from stylegen.pipeline.task import Task, unsettled

BATCH, IN_FLIGHT = 8, 32
STEPS, STEP = 20, 0.05
SOLO = STEPS * STEP
ARTISTS, BURSTS, LARGEST_BURST = 200, 0.1, 16
FORMATS = ("1:1", "2:2", "1:2")
MIXES = {"60/20/20": (0.6, 0.2, 0.2), "in turn": None}
LOADS = (0.5, 0.8, 0.95)
"""Of what full batches draw."""


class Arrival(NamedTuple):
    """When a job comes, and what it is."""

    seconds: float
    style: int
    aspect_ratio: str


def make_trace(jobs: int, load: float, mix: str, seed: int = 0) -> list[Arrival]:
    """Jobs at random moments, one in ten a burst; the n-th artist gets 1/n as many as the first."""
    rng, shares = np.random.default_rng(seed), MIXES[mix]
    weights = 1 / np.arange(1, ARTISTS + 1)
    styles = rng.choice(ARTISTS, jobs, p=weights / weights.sum())
    turns = rng.choice(3, jobs, p=shares) if shares else np.arange(jobs) % 3
    bursts = np.where(rng.random(jobs) < BURSTS, rng.integers(2, LARGEST_BURST + 1, jobs), 1)
    moments = np.repeat(rng.exponential(1.0, jobs).cumsum(), bursts)[:jobs]
    seconds = moments * jobs / moments[-1] / (load * BATCH / SOLO)
    together = zip(seconds.tolist(), styles.tolist(), turns.tolist(), strict=True)
    return [Arrival(moment, style, FORMATS[turn]) for moment, style, turn in together]


class Static(ActiveBatch):
    """The oldest job's kind makes a batch, and nobody joins it before all of it is done."""

    def next(self) -> Task | None:
        """Who is to join before the first step."""
        self.begun = unsettled(self.begun)
        is_closed = any(task.step for task in self.tasks)
        if not self.begun or is_closed or not self.limits.has_room(self.tasks):
            return None
        return choose_next(self.begun, self.tasks, (self.tasks or self.begun)[0])


class OneAdapter(Task):
    """Shares a batch with jobs of its own style only."""

    @property
    def batch_key(self) -> Any:
        """Its style, too."""
        return self.job.style_id, super().batch_key


class Way(NamedTuple):
    """A way to make batches."""

    active: type[ActiveBatch]
    task: type[Task]
    batch: int


WAYS = {
    "this engine": Way(ActiveBatch, Task, BATCH),
    "static mixed batches": Way(Static, Task, BATCH),
    "one adapter a batch": Way(ActiveBatch, OneAdapter, BATCH),
    "batch 1": Way(ActiveBatch, Task, 1),
}


@dataclass
class Prompt:
    """Has the shape of prompt embeddings."""

    shape: Sequence[int] = (2, 77, 768)


@dataclass
class Calls:
    """Has as much of a trajectory as batching looks at."""

    timesteps: Sequence[int] = range(STEPS)
    latents: int = 0
    calls: int = 0

    @property
    def steps_taken(self) -> int:
        """As `Trajectory.steps_taken`: a step is one call."""
        return self.calls


def make_jobs() -> dict[str, GenerationJob]:
    """A job of each format."""
    fields = {"style_id": 1, "lora_model_url": "s3://models/1.safetensors", "prompt_tags": ["x"]}
    fields |= {"generation_id": 1, "artist_name": "x", "webhook_url": "https://api.example.com"}
    return {ratio: GenerationJob(aspect_ratio=ratio, **fields) for ratio in FORMATS}


@dataclass
class Server:
    """A worker's queue, its UNet and its two ends, all of which only take time.

    Attributes:
        way: How batches are made.
        trace: The jobs that come; the worker holds `IN_FLIGHT` of them at a time.
        now: Seconds since the beginning.
        latencies: Seconds from a job's arrival to its picture.
        widths: Pictures of each step.
        order: Places in the trace, as their pictures were begun.
    """

    way: Way
    trace: Sequence[Arrival]
    now: float = 0.0
    latencies: list[float] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        ends: Any = self
        self._active = self.way.active(ends, self.way.batch)
        self._loop = Loop(self._active, ends)
        self._jobs, self._taken = make_jobs(), 0

    def finish(self, task: Task, **_: Any) -> None:
        """As `EncodeDecode.finish`."""
        self.latencies.append(self.now - self.trace[int(task.job.generation_id)].seconds)

    def step(self, tasks: Sequence[Task]) -> None:
        """As `Batch.step`; who has come meanwhile lines up."""
        self.now += STEP
        self.widths.append(len(tasks))
        for task in tasks:
            task.trajectory.calls += 1
        self._take()

    def _take(self) -> None:
        while self._taken < min(len(self.trace), len(self.latencies) + IN_FLIGHT):
            arrival, number = self.trace[self._taken], self._taken
            if arrival.seconds > self.now:
                break
            own = {"style_id": arrival.style, "generation_id": number}
            job = self._jobs[arrival.aspect_ratio].model_copy(update=own)
            begun = {"prompt_embeds": Prompt(), "trajectory": Calls()}
            self._loop.line.add(self.way.task(job, None, partial(self._note, number), **begun))
            self._taken += 1

    def _note(self, number: int, step: int) -> None:
        if step == 0:
            self.order.append(number)

    def run(self) -> dict[str, float]:
        """Draw all, turn by turn; the figures."""
        while len(self.latencies) < len(self.trace):
            if len(self.latencies) == self._taken:  # nothing to do before the next one comes
                self.now = max(self.now, self.trace[self._taken].seconds)
            self._take()
            take_turn(self._loop.line, self._loop.calls, self._active, self._loop.encode_decode)
            left = len(self._loop.line.tasks) + len(self._active.begun)
            if self._taken != len(self.latencies) + left:
                raise RuntimeError("a job has failed")
        p50, p99 = np.quantile(self.latencies, [0.5, 0.99])
        within = np.mean(np.array(self.latencies) <= 2 * SOLO)
        mean = np.mean(self.widths)
        return {"batch": float(mean), "p50": p50, "p99": p99, "within_2_solo": float(within)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        "| formats | load | | mean batch | p50 | p99 | within 2 × solo |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = math.floor(100 * row["within_2_solo"])
        lines.append(
            f"| {row['mix']} | {row['load']:g} | {row['way']} | {row['batch']:.2f} "
            f"| {row['p50']:.1f} s | {row['p99']:.1f} s | {share} % |"
        )
    return "\n".join(lines)


def main(jobs: int) -> None:
    """Measure, print, store."""
    rows = []
    for mix in MIXES:
        for load in LOADS:
            trace = make_trace(jobs, load, mix)
            for name, way in WAYS.items():
                rows.append({"mix": mix, "load": load, "way": name, **Server(way, trace).run()})
    print(table(rows))
    fixed = {"jobs": jobs, "batch": BATCH, "in_flight": IN_FLIGHT, "solo_seconds": SOLO}
    store("serving", fixed | {"rows": rows}, "numpy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--table", action="store_true", help="print what is stored")
    asked = parser.parse_args()
    if asked.table:
        print(table(json.loads((RESULTS / "serving.json").read_text(encoding="utf-8"))["rows"]))
    else:
        main(asked.jobs)
