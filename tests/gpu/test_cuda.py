"""On a card: pictures are right, memory that is short is shared, a device that is lost is left."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import draw_together
from lora_files import write_diffusers
from one_message import OneMessageBroker
from sd15 import SD15, TINY, make_pipeline

from stylegen.job import GenerationJob, check_job
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.schedulers import make_scheduler
from stylegen.pocket import STYLES, packaged
from stylegen.pocket import main as lay_out_pocket
from stylegen.webhook import WebhookReceiver

pytestmark = pytest.mark.gpu
HERE = Path(__file__).parent
MODEL = str(packaged() / "pocket")
LORAS = [packaged() / f"pocket-loras/{style}.safetensors" for style in STYLES]
STEPS = {"cuda": 25, "cpu": 2}
ALIKE = 40.0
"""Decibels of the peak-signal-to-noise ratio above which two pictures are the same to the eye."""


def job(number: int, steps: int, **changes: Any) -> GenerationJob:
    """One of four jobs that differ in all that a job may differ in, but for size."""
    own = (
        {"prompt_tags": ["red", "heart", "white background"]},
        {"prompt_tags": ["blue", "star", "grey background"], "scheduler": "euler"},
        {"prompt_tags": ["green", "circle", "white background"], "guidance_scale": 3.0},
        {"prompt_tags": ["pink", "square", "black background"], "negative_prompt": "white"},
    )[number % 4]
    fields = {
        "generation_id": number + 1,
        "style_id": number,
        "lora_model_url": "s3://models/k.safetensors",
        "artist_name": "Zoë",
        "webhook_url": "http://localhost",
        "num_inference_steps": steps,
        "seed": number,
    }
    return check_job(fields | own | changes)


def psnr(one: Any, other: Any) -> float:
    """Decibels; infinite for equal pictures."""
    error = np.square(np.float64(one) - np.float64(other)).mean()
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@contextmanager
def engine_on(device: str, **options: Any) -> Iterator[Engine]:
    """An engine on the pocket model."""
    engine = Engine(load_pipeline(MODEL, device=device), **options)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module", name="jobs")
def _jobs(device: str) -> list[GenerationJob]:
    return [job(number, STEPS[device]) for number in range(4)]


@pytest.fixture(scope="module", name="alone")
def _alone(device: str, jobs: list[GenerationJob]) -> list[Any]:
    """Each job's picture, drawn alone."""
    with engine_on(device, batch=1) as engine:
        return [engine.draw(one, lora) for one, lora in zip(jobs, LORAS, strict=True)]


@pytest.mark.parametrize("merged", [False, True], ids=["low-rank", "merged"])
def test_a_mixed_batch_is_each_alone(
    device: str, jobs: list[GenerationJob], alone: list[Any], merged: bool
) -> None:
    """Four artists in one batch, in both forms: at least 40 dB."""
    with engine_on(device, batch=4, merge_loras=merged) as engine:
        together = draw_together(engine, jobs, LORAS)
    for one, other in zip(together, alone, strict=True):
        assert psnr(one, other) >= ALIKE


def final_latents(device: str, jobs: Sequence[GenerationJob], merged: bool) -> list[torch.Tensor]:
    """The last latents of a batch of ours."""
    kept: dict[int, torch.Tensor] = {}

    def keep(number: int) -> Callable[..., None]:
        return lambda _, latents: kept.update({number: latents.double().cpu()})

    with engine_on(device, batch=4, merge_loras=merged) as engine:
        draw_together(
            engine, jobs, LORAS[: len(jobs)], on_latents=[keep(n) for n in range(len(jobs))]
        )
    return [kept[number] for number in range(len(jobs))]


def stock_latents(
    device: str, jobs: Sequence[GenerationJob], dtype: torch.dtype
) -> list[torch.Tensor]:
    """The same by stock diffusers, one after the other."""
    pipeline, latents = load_pipeline(MODEL, device=device).to(dtype), []
    config = pipeline.scheduler.config
    for one, lora in zip(jobs, LORAS, strict=False):
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
        pipeline.scheduler = make_scheduler(one.scheduler, config)
        drawn = pipeline(
            one.prompt,
            negative_prompt=one.negative_prompt,
            num_inference_steps=one.num_inference_steps,
            guidance_scale=float(one.guidance_scale),
            generator=torch.Generator().manual_seed(one.seed),
            output_type="latent",
        ).images
        latents.append(drawn.double().cpu())
        pipeline.unload_lora_weights()
    return latents


def test_half_precision_is_no_worse_than_stocks(device: str, jobs: list[GenerationJob]) -> None:
    """Against single precision a mixed batch is at most 1.25 times as wrong as stock diffusers."""
    jobs = jobs if device == "cuda" else jobs[:2]
    exact = stock_latents(device, jobs, torch.float32)
    stock = stock_latents(device, jobs, torch.float16) if device == "cuda" else exact

    def error(latents: list[torch.Tensor]) -> float:
        return sum(float((a - b).norm()) for a, b in zip(latents, exact, strict=True))

    rounding = 2e-3  # of single precision, in the norms of two pictures
    for merged in (False, True):
        assert error(final_latents(device, jobs, merged)) <= 1.25 * error(stock) + rounding


def test_one_seed_is_one_picture_on_every_device(device: str, alone: list[Any]) -> None:
    """Noise is the CPU's: the card draws what a CPU draws in single precision."""
    with engine_on("cpu", batch=1) as engine:
        here = engine.draw(job(0, STEPS[device]), LORAS[0])
    other = psnr(here, alone[1])
    assert psnr(here, alone[0]) >= max(25.0, other + 10)


def test_noise_is_the_cpus(device: str) -> None:
    """To the bit, but for half precision's rounding."""
    taken: list[torch.Tensor] = []
    with engine_on(device, batch=1) as engine:
        first = engine.pipeline.unet.register_forward_pre_hook(
            lambda _, given: taken.append(given[0][:1].float().cpu())
        )
        engine.draw(job(1, 1, seed=7), LORAS[1])
        first.remove()
    noise = torch.randn(taken[0].shape, generator=torch.Generator().manual_seed(7))
    assert (taken[0] - noise).abs().max() <= 0.01


def test_nobody_leaves_a_trace(device: str, jobs: list[GenerationJob], alone: list[Any]) -> None:
    """A job after others is the same bits as before them; no weight has changed."""
    with engine_on(device, batch=1) as engine:
        weights = {k: v.clone() for k, v in engine.pipeline.unet.state_dict().items()}
        first = engine.draw(jobs[0], LORAS[0]).tobytes()
        for one, lora in zip(jobs[1:], LORAS[1:], strict=True):
            engine.draw(one, lora)
        assert engine.draw(jobs[0], LORAS[0]).tobytes() == first == alone[0].tobytes()
        for name, weight in engine.pipeline.unet.state_dict().items():
            assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"offload": "model"},
        {"offload": "sequential"},
        {"attention_slicing": True},
        {"vae_tiling": True},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_ways_to_need_less_memory(
    device: str, jobs: list[GenerationJob], alone: list[Any], options: dict[str, Any]
) -> None:
    """Each draws the same picture, also with a LoRA that changes the text encoder."""
    chosen = slice(2 if device == "cuda" else 3, 4)  # the last one speaks
    engine = Engine(load_pipeline(MODEL, device=device, **options), batch=4)
    together = draw_together(engine, jobs[chosen], LORAS[chosen])
    engine.close()
    for one, other in zip(together, alone[chosen], strict=True):
        assert psnr(one, other) >= (30 if "vae_tiling" in options else ALIKE)


@contextmanager
def little_memory(engine: Engine, device: str, room: int) -> Iterator[Callable[[int], None]]:
    """Yields an ``on_step`` that leaves only `room` bytes from the first step to the last but one.

    On a CPU the UNet refuses to take more than four rows instead.
    """
    held: list[Any] = []
    forward = engine.pipeline.unet.forward

    def refuse(latents: torch.Tensor, *given: Any, **options: Any) -> Any:
        if len(latents) > 4:
            raise torch.OutOfMemoryError("acted")
        return forward(latents, *given, **options)

    def on_step(step: int) -> None:
        if step == 1 and device == "cuda":
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            held.append(torch.empty(max(0, free - room), dtype=torch.uint8, device=device))
        elif step == 1:
            engine.pipeline.unet.forward = refuse
        elif step == OOM_STEPS - 1:
            held.clear()
            torch.cuda.empty_cache()

    try:
        yield on_step
    finally:
        held.clear()
        engine.pipeline.unet.forward = forward


OOM_STEPS, OOM_JOBS = 6, {"cuda": 8, "cpu": 3}


def test_too_little_memory_halves_the_batch(
    device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A filler takes the memory amid some pictures: fewer at a time, and all of them drawn."""
    most = OOM_JOBS[device]
    shape = SD15 if device == "cuda" else TINY
    dtype = torch.float16 if device == "cuda" else torch.float32
    engine = Engine(make_pipeline(shape, device, dtype), batch=most)
    lora = write_diffusers(tmp_path / "l.safetensors", engine.pipeline, 4, seed=0, size=0.03)
    jobs = [job(number, OOM_STEPS) for number in range(most)]

    def draw(count: int, on_step: Any = None) -> tuple[list[Any], int]:
        peaks: list[int] = []

        def watch(step: int) -> None:
            if device == "cuda" and step == 1:
                torch.cuda.reset_peak_memory_stats()
            if device == "cuda" and step == OOM_STEPS - 1:
                peaks.append(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())
            if on_step:
                on_step(step)

        watched = [lambda step, _: watch(step), *[lambda *_: None] * (count - 1)]
        pictures = draw_together(engine, jobs[:count], [lora] * count, on_latents=watched)
        return pictures, peaks[0] if peaks else 0

    draw(1)  # warms up
    one, whole = draw(1)[1], draw(most)
    with little_memory(engine, device, one + (whole[1] - one) // 4) as on_step:
        with caplog.at_level("WARNING", "stylegen"):
            halved, _ = draw(most, on_step)
    engine.close()
    assert any("too little memory" in text for text in caplog.messages)
    for before, after in zip(whole[0], halved, strict=True):
        assert psnr(before, after) >= ALIKE


def test_a_lost_device_ends_the_worker(device: str, tmp_path: Path) -> None:
    """An error that stays: exit code 3, the message neither acknowledged nor refused, no word."""
    lay_out_pocket([str(tmp_path)])
    with WebhookReceiver() as backend:
        fields = job(0, 8).model_dump(mode="json", exclude_none=True)
        fields |= {"lora_model_url": "s3://models/neon.safetensors", "webhook_url": backend.url}
        with OneMessageBroker("image_generation", json.dumps(fields).encode()) as broker:
            environment = os.environ | {
                "INTERNAL_API_TOKEN": "token-of-the-tests",
                "WEBHOOK_ALLOWED_ORIGINS": backend.url,
                "RABBITMQ_URL": broker.url,
                "STYLEGEN_STORAGE_FOLDER": str(tmp_path),
                "STYLEGEN_CACHE_FOLDER": str(tmp_path / "cache"),
                "STYLEGEN_MODEL": str(tmp_path / "pocket"),
                "STYLEGEN_DEVICE": device,
            }
            done = subprocess.run(
                [sys.executable, str(HERE / "lost_device.py")],
                env=environment,
                capture_output=True,
                text=True,
                timeout=80,
            )
            assert done.returncode == 3, done.stderr
            assert broker.delivered.is_set() and not broker.settled
    events = [hook.path.rpartition("/")[2] for hook in backend.received]
    assert events and set(events) == {"progress"}


def test_threads_share_one_card(device: str, jobs: list[GenerationJob], alone: list[Any]) -> None:
    """Callers on threads of their own, as the worker's: each gets its own picture."""
    with engine_on(device, batch=4) as engine, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.draw, jobs, LORAS))
    for one, other in zip(together, alone, strict=True):
        assert psnr(one, other) >= ALIKE


def test_a_compiled_batch_is_each_alone(
    device: str, jobs: list[GenerationJob], alone: list[Any], tmp_path: Path
) -> None:
    """By inductor, as the worker compiles; a CPU only traces, a small model, for one job."""
    if device == "cuda":
        pipeline, loras, backend = load_pipeline(MODEL, device=device), LORAS, "inductor"
    else:
        pipeline, backend = make_pipeline(TINY, device, torch.float32), "eager"
        loras = [write_diffusers(tmp_path / "lora.safetensors", pipeline, 4, seed=1)]
        plain = Engine(pipeline, batch=1)
        alone = [plain.draw(jobs[0], loras[0])]
        plain.close()
    engine = Engine(pipeline, batch=4, merge_loras=True, compile_backend=backend)
    together = draw_together(engine, jobs[: len(loras)], loras)
    engine.close()
    for one, other in zip(together, alone, strict=True):
        assert psnr(one, other) >= ALIKE
