"""Measure the pocket model against its bars; print the table and store it with the model card.

Usage: ``python tools/pocket_report.py [--model FOLDER] [--loras FOLDER] [--pictures N]``. With
``--styles`` only the LoRAs are measured, as after training them on the same base; the base's
rows are kept.
Prompts are scenes whose (shape, colour, background) never occurred in training. Two processes
draw, with one thread each; time and memory are measured in a process of their own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stylegen.job import GenerationJob
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.schedulers import make_scheduler
from stylegen.pocket import Scene, caption, is_held_out, judge, packaged

BATCH = 4


@dataclass(frozen=True)
class Task:
    """Pictures to draw alike: how many, and how."""

    model: str
    lora: str
    style: str = "plain"
    aspect: str = "1:1"
    scheduler: str = "dpmsolver++"
    steps: int = 50
    scale: float = 1.0
    first: int = 0
    count: int = 0


def scenes(first: int, count: int) -> list[Scene]:
    """Scenes number `first` and on, all of them unseen in training."""
    rng, found = np.random.default_rng(20_261_124), []
    while len(found) < first + count:
        scene = Scene.random(rng)
        if is_held_out(scene):
            found.append(scene)
    return found[first:]


def tags(scene: Scene, seed: int) -> list[str]:
    """A scene's tags in random order; size and place may be left out, the rest is judged."""
    rng = np.random.default_rng(seed)
    while f"{scene.background} background" not in (found := caption(scene, rng)):
        pass
    return found


def order(task: Task, scene: Scene, seed: int) -> GenerationJob:
    """The job that asks for a scene."""
    return GenerationJob(
        generation_id="report",
        style_id=task.style,
        lora_model_url=Path(task.lora).as_uri(),
        prompt_tags=tuple(tags(scene, seed)),
        artist_name="report",
        webhook_url="http://localhost",
        aspect_ratio=task.aspect,
        seed=seed,
        scheduler=task.scheduler,
        num_inference_steps=task.steps,
        lora_scale=task.scale,
    )


@lru_cache(maxsize=1)
def engine_of(model: str, device: str = "cpu") -> Engine:
    """The resident engine of a worker process."""
    import torch

    torch.set_num_threads(1)
    return Engine(load_pipeline(model, device=device), batch=BATCH)


def judge_task(task: Task, device: str = "cpu") -> list[tuple[bool, bool, bool]]:
    """Draw a task's pictures: are colour and ground right, the shape, the style?"""
    engine = engine_of(task.model, device)

    def one(number: int, scene: Scene) -> tuple[bool, bool, bool]:
        seen = judge(engine.draw(order(task, scene, seed=1_000_000 + number), task.lora))
        colours = (seen.colour, seen.background) == (scene.colour, scene.background)
        return colours, seen.shape == scene.shape, seen.style == task.style

    numbers = range(task.first, task.first + task.count)
    with ThreadPoolExecutor(BATCH) as threads:
        return list(threads.map(one, numbers, scenes(task.first, task.count)))


def share_right(pool: ProcessPoolExecutor, task: Task) -> dict[str, float]:
    """Percentages of right colours, shapes and styles of a task, drawn in small portions."""
    portions = [
        replace(task, first=first, count=min(2 * BATCH, task.count - first))
        for first in range(0, task.count, 2 * BATCH)
    ]
    results = [right for portion in pool.map(judge_task, portions) for right in portion]
    return dict(zip(("colours", "shape", "style"), 100 * np.mean(results, axis=0), strict=True))


def check_scale(task: Task) -> tuple[bool, bool]:
    """Is scale 0 the base, bit for bit? Does scale 0.5 lie between 0 and 1?"""
    engine, scene = engine_of(task.model), scenes(0, 1)[0]

    def pixels(scale: float) -> Any:
        job = order(replace(task, scale=scale), scene, seed=1)
        return np.asarray(engine.draw(job, task.lora), dtype=float)

    import torch

    job, pipeline = order(task, scene, seed=1), load_pipeline(task.model, device="cpu")
    pipeline.scheduler = make_scheduler(job.scheduler, pipeline.scheduler.config)
    base = pipeline(
        job.prompt,
        negative_prompt="",
        num_inference_steps=task.steps,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    none, half, full = (pixels(scale) for scale in (0.0, 0.5, 1.0))
    whole = np.abs(full - none).mean()
    between = max(np.abs(half - none).mean(), np.abs(full - half).mean()) < whole
    return bool((none == np.asarray(base)).all()), bool(between)


def check_cost(task: Task) -> tuple[float, float]:
    """Median seconds of five 512x512 pictures, and peak memory in GB, in a fresh process."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); import pocket_report as report\n"
        f"print(*report.measure_cost(report.{task!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, memory = run.stdout.split()[-2:]
    return float(seconds), float(memory)


def measure_cost(task: Task) -> tuple[float, float]:
    """The inside of `check_cost`."""
    engine, times = engine_of(task.model), []
    job = order(task, scenes(0, 1)[0], seed=1)
    for _ in range(6):
        started = time.perf_counter()
        engine.draw(job, task.lora)
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return statistics.median(times[1:]), peak


Row = tuple[str, str, str, bool]


def rate(figure: str, value: float, limit: float, unit: str = " %", most: bool = False) -> Row:
    """A row: figure, measured, bar, met; `limit` is the least, or the most."""
    met, sign = value <= limit if most else value >= limit, "≤" if most else "≥"
    row = (figure, f"{value:.1f}{unit}", f"{sign} {limit:g}{unit}", bool(met))
    print(*row, sep=" | ", flush=True)
    return row


def measure_styles(pool: ProcessPoolExecutor, base: Task, files: list[Path]) -> list[Row]:
    """Is each LoRA's style recognised, and are its colours right?"""
    rows = []
    for file in files:
        style = replace(base, lora=str(file.resolve()), style=file.stem, scale=1.0)
        found = share_right(pool, replace(style, count=base.count // 4))
        rows.append(rate(f"{file.stem}: style recognised", found["style"], 95))
        rows.append(rate(f"{file.stem}: colours right", found["colours"], 85))
    return rows


def with_new_styles(model: Path, base: Task, files: list[Path]) -> list[Row]:
    """The stored rows, those of the LoRAs measured anew."""
    with ProcessPoolExecutor(2) as pool:
        fresh = {row[0]: row for row in measure_styles(pool, base, files)}
    stored = json.loads((model / "report.json").read_text(encoding="utf-8"))
    rows = [tuple(row.values()) for row in stored]
    return [fresh.get(row[0], row) for row in rows]


def measure(model: Path, loras: Path, pictures: int, styles: bool = False) -> list[Row]:
    """Every row of the table: figure, measured, bar, met."""
    rows: list[Row] = []

    def add(*given: Any) -> None:
        rows.append(rate(*given))

    files = sorted(loras.glob("*.safetensors"))
    base = Task(str(model), str(files[0].resolve()), scale=0.0, count=pictures)
    if styles:
        return with_new_styles(model, base, files)
    cost = check_cost(base)
    with ProcessPoolExecutor(2) as pool:
        plain = share_right(pool, base)
        add(
            f"colours right, 512x512, 50 steps, DPM-Solver++, {pictures} pictures",
            plain["colours"],
            95,
        )
        add("shape right, the same pictures", plain["shape"], 90)
        for aspect, size in (("2:2", "768x768"), ("1:2", "512x1024")):
            other = share_right(pool, replace(base, aspect=aspect, count=pictures // 2))
            add(f"colours right, {size}", other["colours"], 85)
            add(f"shape right, {size}", other["shape"], 85)
        euler = share_right(pool, replace(base, scheduler="euler", steps=30))
        for name in ("colours", "shape"):
            add(f"Euler, 30 steps, {name}: points below", plain[name] - euler[name], 3, " ", True)
        rows += measure_styles(pool, base, files)
    is_base, is_between = check_scale(replace(base, scale=1.0))
    rows.append(("lora_scale 0 is the base, bit for bit", str(is_base), "True", is_base))
    rows.append(("lora_scale 0.5 lies between", str(is_between), "True", is_between))
    add("one 512x512 picture, 50 guided steps, one thread, fp32", cost[0], 5, " s", True)
    add("peak memory of that", cost[1], 1.5, " GB", True)
    return rows


def store(rows: list[Row], model: Path) -> None:
    """Write the table into the model card, between its marks, and as JSON beside it."""
    lines = ["| figure | measured | bar | met |", "|---|---|---|---|"]
    lines += [f"| {a} | {b} | {c} | {'yes' if d else 'NO'} |" for a, b, c, d in rows]
    card = model / "README.md"
    if card.exists():
        start, end = "<!-- report -->", "<!-- /report -->"
        before, _, rest = card.read_text(encoding="utf-8").partition(start)
        after = rest.partition(end)[2]
        text = "\n".join([start, *lines, end])
        card.write_text(before + text + after, encoding="utf-8")
    names = ("figure", "measured", "bar", "met")
    report = [dict(zip(names, row, strict=True)) for row in rows]
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (model / "report.json").write_text(text + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=packaged() / "pocket")
    parser.add_argument("--loras", type=Path, default=packaged() / "pocket-loras")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--styles", action="store_true", help="measure the LoRAs only")
    chosen = parser.parse_args()
    table = measure(chosen.model.resolve(), chosen.loras, chosen.pictures, chosen.styles)
    store(table, chosen.model)
    sys.exit(not all(met for *_, met in table))
