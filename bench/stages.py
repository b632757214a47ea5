"""Stages of a long measurement, each in its time: what fails or takes too long stops no other.

A stage works in a process that all of them share, as long as it lives, and sends each figure the
moment it has it. The process that waits for it writes the figure down, and ends the other one, with
all that it has started, when a stage's time is over; the next stage gets a new one.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from stored import write

Record = Callable[[str, Any], None]
"""``record(name, figure)``: a figure is any JSON value."""
START_SECONDS = 120.0
"""For a process to import its libraries and find its device."""
LEAST_SECONDS = 1.0
"""With less than this left nothing is begun."""


@dataclass(frozen=True)
class Stage:
    """Something to measure.

    Attributes:
        name: Its key in the results.
        seconds: Time it may take at most.
        work: ``module:function``; it gets the bench that its process has opened, and a `Record`.
            Named and not imported: the process that waits needs none of the libraries.
    """

    name: str
    seconds: float
    work: str


def named(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` means."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)  # type: ignore[no-any-return]


def call(name: str, *given: Any) -> Any:
    """Call a function by its name, in the process that needs it."""
    return named(name)(*given)


class Bench(Protocol):
    """What the stages of a process share."""

    def facts(self) -> dict[str, Any]:
        """Device and versions; ``device``, ``sizes`` and ``commit`` must be among them."""

    def forget(self) -> None:
        """Give back what a stage has left; raises if the device is lost."""


class Results:
    """A JSON file that is written anew with each figure: ``{stage: {status, facts, figures}}``.

    Args:
        path: The file; what it holds already is kept.
        key: Facts that must be the same for a stage to count as done.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path, self._key = path, key
        self.stages: dict[str, Any] = {}
        if path.exists():
            self.stages = json.loads(path.read_text(encoding="utf-8"))

    def has(self, name: str) -> bool:
        """Whether a stage is done, by the same code on the same device."""
        stage = self.stages.get(name, {})
        same = all(stage.get(key) == value for key, value in self._key.items())
        return same and stage["status"] == "done"

    def put(self, name: str, status: str, facts: dict[str, Any], figures: dict[str, Any]) -> None:
        """Write down how far a stage has come."""
        self.stages[name] = {"status": status, **facts, "figures": figures}
        write(self.path, self.stages)


@dataclass
class Worker:
    """The process in which stages work."""

    process: Any
    line: Connection
    facts: dict[str, Any] = field(default_factory=dict)

    def do(self, stage: Stage, seconds: float, on_figure: Record) -> str:
        """Have a stage done; tells how it ended."""
        end = time.monotonic() + seconds
        self.line.send(stage.name)
        while self.line.poll(max(0.0, end - time.monotonic())):
            try:
                kind, *news = self.line.recv()
            except (EOFError, ConnectionError):
                self.process.join(10)
                return f"failed: its process ended with {self.process.exitcode}"
            if kind == "figure":
                on_figure(*news)
                continue
            facts, goes_on = news
            self.facts |= facts
            if not goes_on:
                self.process.join(10)
            return str(kind)
        self.kill()
        return "out of time"

    def kill(self) -> None:
        """End it, and all that it has started."""
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


@contextmanager
def start(open_bench: Callable[[], Bench], stages: Sequence[Stage]) -> Iterator[Worker]:
    """Start a process; ended with the block."""
    context = get_context("spawn")
    line, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, open_bench, stages))
    process.start()
    other.close()
    worker = Worker(process, line)
    try:
        worker.facts = _first_word(line)
        yield worker
    finally:
        line.close()
        process.join(0 if sys.exc_info()[0] else 10)  # it ends by itself when nobody listens
        worker.kill()


def _first_word(line: Connection) -> dict[str, Any]:
    if not line.poll(START_SECONDS):
        raise SystemExit(f"the stages' process was not ready after {START_SECONDS:.0f} s")
    try:
        return dict(line.recv())
    except EOFError:
        raise SystemExit("the stages' process ended before it could begin; see above") from None


def _serve(line: Connection, open_bench: Callable[[], Bench], stages: Sequence[Stage]) -> None:
    os.setsid()
    bench, known = open_bench(), {stage.name: stage for stage in stages}
    line.send(bench.facts())
    while True:
        try:
            stage = known[line.recv()]
        except EOFError:
            return
        status = "done"
        try:
            named(stage.work)(bench, lambda name, figure: line.send(("figure", name, figure)))
        except Exception as error:  # pylint: disable=broad-exception-caught
            status = f"failed: {type(error).__name__}: {str(error)[:400]}"
            traceback.print_exc()
        goes_on = _is_fit(bench)
        line.send((status, bench.facts() if goes_on else {}, goes_on))
        if not goes_on:
            return


def _is_fit(bench: Bench) -> bool:
    """Whether the device can go on: what a stage has left is given back."""
    try:
        bench.forget()
    except Exception:  # pylint: disable=broad-exception-caught
        traceback.print_exc()
        return False
    return True


def run(
    stages: Sequence[Stage],
    open_bench: Callable[[], Bench],
    path_of: Callable[[dict[str, Any]], Path],
    minutes: float,
    say: Callable[[str], None] = print,
) -> Results:
    """Do what is not done yet, in order, as long as there is time.

    Args:
        stages: The most valuable first.
        open_bench: Makes what they share, in their process.
        path_of: The results' file, by the device's facts.
        minutes: For everything.
        say: Is told of each figure.

    Returns:
        The results; also written to the file, figure by figure.
    """
    began, todo = time.monotonic(), list(stages)
    end, results = began + minutes * 60, None
    while todo and (results is None or end - time.monotonic() > LEAST_SECONDS):
        with start(open_bench, stages) as worker:
            if results is None:
                key = {name: worker.facts[name] for name in ("device", "sizes", "commit")}
                results = Results(path_of(worker.facts), key)
            while todo and worker.process.is_alive() and end - time.monotonic() > LEAST_SECONDS:
                _next(todo.pop(0), worker, results, end, say)
    for stage in (stage for stage in todo if not results.has(stage.name)):
        results.put(stage.name, "not begun: no time left", worker.facts, {})
    return results


def _next(
    stage: Stage, worker: Worker, results: Results, end: float, say: Callable[[str], None]
) -> None:
    if results.has(stage.name):
        say(f"{stage.name}: done before")
        return
    began, figures = time.monotonic(), {}

    def put(status: str) -> None:
        seconds = {"seconds": round(time.monotonic() - began, 1), "budget": stage.seconds}
        results.put(stage.name, status, worker.facts | seconds, figures)

    def on_figure(name: str, figure: Any) -> None:
        figures[name] = figure
        put("running")
        say(f"{stage.name}: {name}: {figure}")

    put("running")
    try:
        status = worker.do(stage, min(stage.seconds, end - began), on_figure)
    except KeyboardInterrupt:
        put("stopped")
        raise
    put(status)
    say(f"{stage.name}: {status} after {time.monotonic() - began:.0f} s")
