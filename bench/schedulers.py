"""What a step costs beside the UNet: by tables, and by the objects that they were made of.

Usage: ``python bench/schedulers.py [--steps N]``. Prints a table, writes
``bench/results/schedulers.json``. Guided pictures of 512x512 in the pocket model's latents, by
turns in one run, in CPU time of this process. Both sides guide, take the step, and lay out the
next input.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from stored import store

from stylegen.fields import SCHEDULERS, SchedulerName
from stylegen.job import GenerationJob
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.batch import model_inputs, take_steps
from stylegen.pipeline.schedulers import make_scheduler
from stylegen.pipeline.step_table import make_table
from stylegen.pipeline.task import Task
from stylegen.pipeline.trajectory import begin_trajectory
from stylegen.pocket import packaged

SHAPE = (1, 16, 16, 16)
BATCHES = (1, 4, 8, 16)


def job(name: SchedulerName, seed: int, steps: int) -> GenerationJob:
    """A guided one."""
    return GenerationJob(
        generation_id=1,
        style_id=1,
        lora_model_url="s3://models/k.safetensors",
        prompt_tags=("red", "heart"),
        artist_name="Zoë",
        webhook_url="http://localhost",
        scheduler=name,
        seed=seed,
        num_inference_steps=steps,
    )


class ByObjects:
    """A batch as it was: each job's scheduler takes its own step."""

    def __init__(self, fresh: Callable[[], Any], batch: int, steps: int) -> None:
        self._schedulers = [fresh() for _ in range(batch)]
        self.latents: list[torch.Tensor] = []
        for seed, scheduler in enumerate(self._schedulers):
            scheduler.set_timesteps(steps)
            if hasattr(scheduler, "set_begin_index"):  # else Karras' doubled timesteps are too many
                scheduler.set_begin_index(0)
            noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
            self.latents.append(noise * scheduler.init_noise_sigma)

    def step(self, call: int, answers: torch.Tensor) -> None:
        """Take a step of each, and lay out the next input."""
        given = []
        for place, (scheduler, part) in enumerate(
            zip(self._schedulers, answers.split(2), strict=True)
        ):
            negative, prompt = part.chunk(2)
            predicted, timestep = negative + 7.5 * (prompt - negative), scheduler.timesteps[call]
            self.latents[place] = scheduler.step(predicted, timestep, self.latents[place])[0]
            given += [scheduler.scale_model_input(self.latents[place], timestep)] * 2
        torch.cat(given)


class ByTables:
    """A batch as the engine has it."""

    def __init__(self, name: SchedulerName, fresh: Callable[[], Any], batch: int, steps: int):
        table, self._tasks = make_table(fresh(), steps), []
        for seed in range(batch):
            one = job(name, seed, steps)
            draw = partial(torch.randn, SHAPE, generator=torch.Generator().manual_seed(seed))
            task = Task(one, None, prompt_embeds=torch.zeros(2, 77, 1))
            task.trajectory = begin_trajectory(table, one, draw, "cpu")
            self._tasks.append(task)

    @property
    def latents(self) -> list[torch.Tensor]:
        """Of each picture."""
        return [task.latents for task in self._tasks]

    def step(self, _: int, answers: torch.Tensor) -> None:
        """Lay out the input of each, and take its step."""
        rows = [2] * len(self._tasks)
        model_inputs(self._tasks, rows)
        take_steps(self._tasks, rows, answers)


def timed(batch: int, steps: int, *sides: ByObjects | ByTables) -> list[float]:
    """Milliseconds of a step of each side: medians."""
    seconds: list[list[float]] = [[] for _ in sides]
    for call in range(steps):
        answers = torch.randn(2 * batch, *SHAPE[1:])
        for side, taken in zip(sides, seconds, strict=True):
            started = time.process_time()
            side.step(call, answers)
            taken.append(time.process_time() - started)
    return [1000 * statistics.median(taken) for taken in seconds]


@torch.no_grad()
def main(steps: int) -> None:
    """Time, print, write."""
    config = load_pipeline(str(packaged() / "pocket"), device="cpu").scheduler.config
    rows = [("dpmsolver++", batch) for batch in BATCHES]
    rows += [(name, BATCHES[-1]) for name in SCHEDULERS if name != "dpmsolver++"]
    result: dict[str, Any] = {}
    print(f"{'a step, in ms':24} batch  objects  tables  ratio")
    for name, batch in rows:
        fresh = partial(make_scheduler, name, config)
        sides = ByObjects(fresh, batch, steps), ByTables(name, fresh, batch, steps)
        objects, tables = timed(batch, steps, *sides)
        result[f"{name}, batch {batch}"] = {"objects_ms": objects, "tables_ms": tables}
        print(f"{name:24} {batch:5} {objects:8.3f} {tables:7.3f} {objects / tables:5.1f}x")
    threads = torch.get_num_threads()
    store("schedulers", {"steps": steps, "threads": threads, "step": result}, "torch", "diffusers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=25)
    main(parser.parse_args().steps)
