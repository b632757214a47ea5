"""The panel against the engine alone, in one run: how soon it is usable, and what it costs.

Usage: ``python bench/playground.py [--repeats N] [--steps S]``.
Prints a table and writes ``bench/results/playground.json``. The panel and the plain function take
turns within each repeat, first the one and then the other, so that a busy machine slows both.

* usable: a fresh Python runs the cells of ``nbs/guides/playground.ipynb`` and waits for the model
  (no browser: `tests/test_browser.py` prints the figure from Run All in JupyterLab)
* updates: changes of the progress bar in a second of drawing
* overhead: a picture by Generate against `generate_image`, seconds to seconds
* grid: three LoRAs by three seeds in the Compare tab, against the same nine jobs on the engine
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from stylegen.pipeline import generate_image, load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.playground import Playground, engine_backend, folder_loras
from stylegen.pocket import packaged

from stored import store

ROOT = Path(__file__).parent.parent
LORAS = packaged() / "pocket-loras"
BARS = {"usable_s": 10.0, "updates_per_s": 2.0, "overhead": 1.05, "grid": 1.10}
NAMES = ["hatching", "mosaic", "neon"]
OPEN = """
import json, sys
cells = json.load(open(sys.argv[1]))["cells"]
code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
exec("\\n".join(code), names := {})
assert names["playground"].context.session.is_ready
"""


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def open_notebook(folder: Path) -> None:
    """Run the playground's notebook in a fresh Python, its panel and model included."""
    work = folder / "nbs/guides"
    work.mkdir(parents=True, exist_ok=True)
    notebook = ROOT / "nbs/guides/playground.ipynb"
    subprocess.run([sys.executable, "-c", OPEN, str(notebook)], cwd=work, check=True)


class Bench:
    """A panel and a plain function on one engine."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.engine, self.steps = Engine(load_pipeline(str(packaged() / "pocket"))), steps
        backend = engine_backend(self.engine, "pocket")
        self.panel = Playground(backend, partial(folder_loras, LORAS), folder=folder)
        self.panel.controls.sampling.steps.value = steps
        self.seeds = iter(range(1_000_000))
        self.updates, self.rates = 0, [0.0]
        self.panel.context.progress.gauge.observe(self._count, "value")

    def _count(self, _: Any) -> None:
        self.updates += 1

    def generate(self) -> None:
        """Press Generate and wait for the picture."""
        self.panel.controls.seed.number.value = str(next(self.seeds))
        before = self.updates
        seconds = timed(lambda: (self.panel.toolbar.generate.click(), self.panel.wait()))
        self.rates.append((self.updates - before) / seconds)

    def plain(self) -> None:
        """The same picture by the guide's function."""
        job = self.panel.job()
        lora = str(LORAS / f"{job.style_id}.safetensors")
        options = {"num_inference_steps": self.steps, "engine": self.engine}
        generate_image(job.style_id, lora, job.prompt_tags, seed=next(self.seeds), **options)

    def grid(self) -> None:
        """Press Draw grid: three LoRAs by three new seeds."""
        compare = self.panel.compare
        compare.axes.x.name.value, compare.axes.y.name.value = "lora", "seed"
        compare.axes.x.values.value = ", ".join(NAMES)
        compare.axes.y.values.value = ", ".join(str(next(self.seeds)) for _ in range(3))
        compare.draw.click()
        self.panel.wait()
        assert compare.sheet.grid and not compare.sheet.grid.missing

    def batch(self) -> None:
        """Nine such jobs on the engine."""
        job, seeds = self.panel.job(), [next(self.seeds) for _ in range(3)]
        pairs = [{"seed": seed, "style_id": name} for seed in seeds for name in NAMES]
        jobs = [job.model_copy(update=pair) for pair in pairs]
        files = [LORAS / f"{each.style_id}.safetensors" for each in jobs]
        with ThreadPoolExecutor(self.engine.batch) as pool:
            list(pool.map(self.engine.draw, jobs, files))

    def pair(self, ours: Callable[[], None], theirs: Callable[[], None], turn: int) -> list[float]:
        """Seconds of both; who goes first changes from turn to turn."""
        if turn % 2:
            return [timed(ours), timed(theirs)]
        return [timed(theirs), timed(ours)][::-1]


def measure(folder: Path, repeats: int, steps: int) -> dict[str, Any]:
    """All figures; the first round warms up and is not counted."""
    usable = [timed(partial(open_notebook, folder / "opened")) for _ in range(3)]
    bench = Bench(folder / "panel", steps)
    singles = [bench.pair(bench.generate, bench.plain, n) for n in range(repeats + 1)][1:]
    grids = [bench.pair(bench.grid, bench.batch, n) for n in range(max(3, repeats // 3) + 1)][1:]
    return {
        "usable_s": round(statistics.median(usable), 2),
        "updates_per_s": round(statistics.median(bench.rates[2:]), 1),
        "panel_s": round(statistics.median(ours for ours, _ in singles), 3),
        "plain_s": round(statistics.median(theirs for _, theirs in singles), 3),
        "overhead": round(statistics.median(ours / theirs for ours, theirs in singles), 3),
        "grid_s": round(statistics.median(ours for ours, _ in grids), 3),
        "batch_s": round(statistics.median(theirs for _, theirs in grids), 3),
        "grid": round(statistics.median(ours / theirs for ours, theirs in grids), 3),
        "steps": steps,
        "repeats": repeats,
    }


def missed(figures: dict[str, Any]) -> list[str]:
    """The figures that miss their bars."""
    return [
        name
        for name, bar in BARS.items()
        if (figures[name] < bar if name == "updates_per_s" else figures[name] > bar)
    ]


def main() -> int:
    """Measure, print against the bars, write the figures down; 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.repeats, options.steps)
    for name, bar in BARS.items():
        met = "NOT MET" if name in missed(figures) else "met"
        print(f"{name:16} {figures[name]:8} bar {bar:6} {met}")
    store("playground", figures | {"bars": BARS}, "torch", "diffusers", "ipywidgets")
    return int(bool(missed(figures)))


if __name__ == "__main__":
    sys.exit(main())
