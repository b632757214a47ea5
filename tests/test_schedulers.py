"""Schedulers as tables: every name draws what diffusers' own object draws, alone or in a batch."""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import pytest
import torch
from test_engine import drawn_together

from stylegen.fields import SCHEDULERS, SchedulerName
from stylegen.job import GenerationJob, InvalidMessage, check_job
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.batch import take_steps
from stylegen.pipeline.encode_decode import noise_source
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.schedulers import make_scheduler
from stylegen.pipeline.step_table import make_table
from stylegen.pipeline.task import Task, model_input
from stylegen.pipeline.trajectory import begin_trajectory
from stylegen.pocket import packaged

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import schedulers as bench  # noqa: E402  pylint: disable=wrong-import-position

LORA = packaged() / "pocket-loras/neon.safetensors"
SD15: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
"""What the base model of production says of its scheduler."""
SHAPE = (1, 4, 8, 8)


def ordered(name: str, steps: int, **fields: Any) -> GenerationJob:
    """A job for a scheduler."""
    common = {
        "generation_id": 1,
        "style_id": 1,
        "lora_model_url": "s3://models/k.safetensors",
        "prompt_tags": ["red", "heart"],
        "artist_name": "Zoë",
        "webhook_url": "http://localhost",
        "scheduler": name,
        "num_inference_steps": steps,
    }
    return check_job(common | fields)


def generator(seed: int) -> torch.Generator:
    """Noise of a seed."""
    return torch.Generator().manual_seed(seed)


def stub(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """In place of a UNet: answers to the negative prompt and to the prompt, ``[2, ...]``."""
    answer = (latents * 0.7 + timestep / 1000).tanh() + 0.1 * latents.roll(1, -1).tanh()
    return torch.cat([answer * 0.9, answer])


def by_object(scheduler: Any, job: GenerationJob) -> torch.Tensor:
    """Final latents as `StableDiffusionPipeline` comes to them."""
    noise, steps = generator(job.seed), job.num_inference_steps
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):  # else Karras' doubled timesteps are an IndexError
        scheduler.set_begin_index(0)
    taken = inspect.signature(scheduler.step).parameters
    options = {"generator": noise, "eta": 0.0}
    options = {name: value for name, value in options.items() if name in taken}
    latents = torch.randn(SHAPE, generator=noise) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        negative, prompt = stub(scheduler.scale_model_input(latents, timestep), timestep).split(1)
        answer = negative + job.guidance_scale * (prompt - negative)
        latents = scheduler.step(answer, timestep, latents, **options, return_dict=False)[0]
    return latents


def begun(scheduler: Any, job: GenerationJob) -> Task:
    """A task that is about to take its first step."""
    draw = partial(torch.randn, SHAPE, generator=generator(job.seed))
    trajectory = begin_trajectory(make_table(scheduler, job.total_steps), job, draw, "cpu")
    return Task(job, None, trajectory=trajectory)


def by_table(*tasks: Task) -> list[torch.Tensor]:
    """Final latents of tasks whose steps are taken together, as far as each goes."""
    while going := [task for task in tasks if not task.is_finished]:
        answers = torch.cat([stub(*model_input(task))[-task.rows :] for task in going])
        take_steps(going, [task.rows for task in going], answers)
    for task in tasks:
        assert not task.result.done(), task.result.exception()
    return [task.latents for task in tasks]


def assert_alike(latents: torch.Tensor, expected: torch.Tensor, largest: float = 0.0) -> None:
    """The bar: 1e-4 of latents of spread 1, or how stock itself rounds its largest number."""
    bar = 1e-4 * max(1.0, float(expected.std()))
    assert (latents - expected).abs().max() <= max(bar, 2**-24 * largest)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_long_pictures_are_diffusers(name: SchedulerName) -> None:
    """Fifty steps, guided, with the noise of the job's seed; and few, down to one."""
    for steps in (50, 3, 2, 1):
        scheduler, job = make_scheduler(name, SD15), ordered(name, steps, seed=steps)
        assert_alike(by_table(begun(scheduler, job))[0], by_object(scheduler, job))


def test_each_is_the_same_bits_among_all_others() -> None:
    """Sixteen schedulers in one batch, some of them unguided, of different lengths."""
    jobs = [
        ordered(name, 9 + number % 3, seed=number, guidance_scale=7.5 if number % 4 else 1.0)
        for number, name in enumerate(SCHEDULERS)
    ]
    fresh = [partial(begun, make_scheduler(job.scheduler, SD15), job) for job in jobs]
    together = by_table(*(make() for make in fresh))
    for make, latents in zip(fresh, together, strict=True):
        assert torch.equal(by_table(make())[0], latents), make


@pytest.mark.parametrize(
    "make",
    [
        partial(diffusers.DPMSolverSinglestepScheduler, final_sigmas_type="sigma_min"),
        partial(diffusers.DPMSolverMultistepScheduler, solver_order=3),
        partial(diffusers.UniPCMultistepScheduler, solver_order=3),
        diffusers.SASolverScheduler,
        diffusers.PNDMScheduler,
    ],
    ids=["2S", "order 3", "UniPC 3", "SA", "Runge-Kutta"],
)
def test_objects_beyond_the_names(make: Callable[[], Any]) -> None:
    """What an operator assigns to the pipeline is drawn by the same way."""
    job = ordered("euler", 12)
    assert_alike(by_table(begun(make(), job))[0], by_object(make(), job))


@pytest.mark.parametrize(
    "refused",
    [
        diffusers.DDIMScheduler(clip_sample=True),
        diffusers.DPMSolverMultistepScheduler(thresholding=True),
        diffusers.CMStochasticIterativeScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_what_is_no_sum_is_refused(refused: Any) -> None:
    """By its name, whatever it is."""
    with pytest.raises(ValueError, match=type(refused).__name__):
        make_table(refused, 4)


def test_every_scheduler_draws_stocks_picture(pocket: Any) -> None:
    """Through the real engine, eight different ones in a batch: stock's latents for each seed."""
    names = list(SCHEDULERS)
    engine = Engine(load_pipeline(str(pocket / "pocket"), device="cpu"), batch=8)
    drawn: dict[str, torch.Tensor] = {}
    heard: dict[str, list[int]] = {name: [] for name in names}
    for start in range(0, len(names), 8):
        jobs = [ordered(name, 3, seed=seed) for seed, name in enumerate(names[start : start + 8])]
        for job, (latents, _) in zip(jobs, drawn_together(engine, jobs, [LORA] * 8), strict=True):
            drawn[job.scheduler] = latents
    engine.draw(ordered("heun", 3), LORA, on_step=heard["heun"].append)
    engine.draw(ordered("pndm", 3), LORA, on_step=heard["pndm"].append)
    engine.close()
    assert heard["heun"] == heard["pndm"] == [0, 1, 2, 3]
    stock = load_pipeline(str(pocket / "pocket"), device="cpu")
    stock.load_lora_weights(LORA.parent, weight_name=LORA.name)
    config = stock.scheduler.config
    for number, name in enumerate(names):
        stock.scheduler = make_scheduler(name, config)
        common = {"num_inference_steps": 3, "output_type": "latent"}
        expected = stock("red heart", generator=generator(number % 8), **common).images
        largest = 4 * float(stock.scheduler.init_noise_sigma)  # Euler begins at 4096 times noise
        assert_alike(drawn[name], expected, largest)


def test_a_step_that_is_tried_again_has_the_same_noise(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs short in a step's product, after the noise was drawn: nobody draws it anew."""
    job = ordered("euler_a", 3)
    tasks = [Task(job, None), Task(job, None)]
    undisturbed = np.int16(engine.draw(job.model_copy(update={"lora_scale": 0.0}), LORA))
    product, calls = torch.bmm, list[int]()

    def short_once(matrices: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
        calls.append(len(matrices))
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return product(matrices, terms)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "bmm", short_once)
        engine.loop.add(*tasks)
        pictures = [np.int16(task.result.result()) for task in tasks]
    assert calls[:3] == [2, 2, 1]
    assert max(np.abs(picture - undisturbed).max() for picture in pictures) <= 1


def test_a_scheduler_that_cannot_begin_is_one_jobs(engine: Engine) -> None:
    """Its table can't be made: its caller hears of it, and its neighbour is drawn."""
    tasks = [Task(ordered(name, 2), None) for name in ("ddim", "deis")]
    clipping = diffusers.DDIMScheduler(clip_sample=True)
    with patch.dict(engine.loop.encode_decode.named, {"ddim": clipping}):
        engine.loop.add(*tasks)
        with pytest.raises(ValueError, match="DDIMScheduler is not linear"):
            tasks[0].result.result()
    assert tasks[1].result.result().size == (512, 512)


def test_noise_goes_on_where_stocks_generator_does(engine: Engine) -> None:
    """The second draw is what the generator says next, in the model's precision."""
    draw = noise_source(engine.pipeline, ordered("euler_a", 3, seed=5), torch.float16)
    noise, shape = generator(5), draw().shape
    torch.randn(shape, generator=noise, dtype=torch.float16)
    assert torch.equal(draw(), torch.randn(shape, generator=noise, dtype=torch.float16))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_profiles_go_with_it_or_are_refused(name: SchedulerName) -> None:
    """`ays` with those that take timesteps; else the message names them. The interval with all."""
    scheduler = make_scheduler(name, SD15)
    if SCHEDULERS[name].is_free:
        job = ordered(name, 20, speed_profile="ays")
        assert make_table(scheduler, job.total_steps, ays=True).steps == 10
    else:
        with pytest.raises(InvalidMessage, match=r"speed_profile: ays .*euler, ddpm, heun"):
            ordered(name, 20, speed_profile="ays")
        with pytest.raises(ValueError):
            make_table(scheduler, 10, ays=True)
    job = ordered(name, 20, speed_profile="guidance_interval")
    guided = begun(scheduler, job).trajectory.guided
    assert guided[len(guided) // 2] and not all(guided)


def test_what_a_message_may_not_ask() -> None:
    """An unknown name is told the known ones, a distilled model's scheduler has its bound."""
    with pytest.raises(InvalidMessage, match=r"scheduler: .*'dpmsolver\+\+'.*'euler_a'.*'tcd'"):
        ordered("Euler a", 20)
    for name in ("lcm", "tcd"):
        assert ordered(name, 50).total_steps == 50
        with pytest.raises(InvalidMessage, match=f"scheduler: {name} takes at most 50 steps"):
            ordered(name, 51)


@torch.no_grad()
def test_the_bench_takes_the_same_steps_on_both_sides() -> None:
    """What is timed is the same work: two pictures by objects and by tables."""
    fresh = partial(make_scheduler, "dpmsolver++", SD15)
    objects = bench.ByObjects(fresh, 2, 6)
    tables = bench.ByTables("dpmsolver++", fresh, 2, 6)
    assert all(milliseconds > 0 for milliseconds in bench.timed(2, 6, objects, tables))
    for expected, latents in zip(objects.latents, tables.latents, strict=True):
        assert_alike(latents, expected)
