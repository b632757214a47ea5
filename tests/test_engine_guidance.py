"""Steps without guidance: which they are, and that they hear the prompt, not the negative."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_engine import drawn_together, stock

from stylegen.job import GenerationJob, check_job
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.schedulers import make_scheduler
from stylegen.pipeline.prompt import encode_pieces, encode_prompt
from stylegen.pocket import packaged

LORA = packaged() / "pocket-loras/neon.safetensors"
LONG = ("red heart",) * 60
"""More tokens than the text encoder has places."""


def ordered(**fields: Any) -> GenerationJob:
    """A job whose negative prompt is another picture."""
    common = {
        "generation_id": 1,
        "style_id": 1,
        "lora_model_url": "s3://models/k.safetensors",
        "prompt_tags": ["red", "heart", "white background"],
        "negative_prompt": "blue star black background",
        "artist_name": "Zoë",
        "webhook_url": "http://localhost",
        "num_inference_steps": 4,
        "seed": 3,
    }
    return check_job(common | fields)


@pytest.fixture(name="rows")
def _rows(engine: Engine) -> Iterator[list[int]]:
    """How many rows each pass through the UNet had."""
    counts: list[int] = []
    hook = engine.pipeline.unet.register_forward_pre_hook(
        lambda _, inputs: counts.append(len(inputs[0]))
    )
    yield counts
    hook.remove()


@pytest.fixture(name="bare", scope="module")
def _bare(pocket: Path) -> Any:
    """The pocket model with a LoRA by diffusers' own loader."""
    pipeline = load_pipeline(str(pocket / "pocket"), device="cpu")
    pipeline.load_lora_weights(LORA.parent, weight_name=LORA.name)
    return pipeline


def apart(one: Any, other: Any) -> int:
    """Levels, of 255, that two pictures differ by at most."""
    return int(np.abs(np.int16(one) - np.int16(other)).max())


def paper_guides(pipeline: Any, timesteps: torch.Tensor) -> list[bool]:
    """Whether each step's noise lies in the interval of Kynkäänniemi et al. for SD 1.5.

    Noise is computed from the model's betas with zero terminal SNR (Lin et al., algorithm 1), not
    read from a scheduler.
    """
    config = pipeline.scheduler.config
    assert (config.beta_schedule, config.rescale_betas_zero_snr) == ("scaled_linear", True)
    roots = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps)
    signal = np.sqrt(np.cumprod(1 - roots**2))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    kept = signal[np.int64(timesteps)]
    return [bool(0.28 * s <= np.sqrt(1 - s**2) <= 5.42 * s) for s in kept]


@torch.no_grad()
def by_hand(pipeline: Any, job: GenerationJob) -> np.ndarray:
    """A picture by stock parts, each row of the UNet alone: guided where the paper says so."""
    prompt, negative = pipeline.encode_prompt(job.prompt, "cpu", 1, True, job.negative_prompt)
    scheduler = make_scheduler(job.scheduler, pipeline.scheduler.config)
    scheduler.set_timesteps(job.num_inference_steps)
    width, height = (side // pipeline.vae_scale_factor for side in job.resolution)
    noise = torch.Generator().manual_seed(job.seed)
    shape = (1, pipeline.unet.config.in_channels, height, width)
    latents = torch.randn(shape, generator=noise) * scheduler.init_noise_sigma
    guides = paper_guides(pipeline, scheduler.timesteps)
    for timestep, is_guided in zip(scheduler.timesteps, guides, strict=True):
        given = scheduler.scale_model_input(latents, timestep)
        predicted = pipeline.unet(given, timestep, prompt).sample
        if is_guided:
            other = pipeline.unet(given, timestep, negative).sample
            predicted = other + job.guidance_scale * (predicted - other)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return np.int16(pipeline.image_processor.postprocess(image)[0])


@pytest.mark.parametrize("scale, width", [(0, 1), (0.5, 1), (1, 1), (1.0, 1), (1.001, 2), (1.5, 2)])
def test_guidance_around_one_is_stock_diffusers(
    engine: Engine, rows: list[int], scale: float, width: int
) -> None:
    """Up to 1 the prompt alone is asked, above it the negative prompt as well."""
    job = ordered(guidance_scale=scale)
    drawn = engine.draw(job, LORA)
    assert rows == [width] * 4
    assert apart(drawn, stock(engine, job, [LORA], [1.0])[1]) <= 1


def test_a_negative_prompt_is_silent_without_guidance(engine: Engine) -> None:
    """Unguided, it changes not one bit; guided, most of the picture."""
    for scale, is_silent in ((1.0, True), (3.0, False)):
        job = ordered(guidance_scale=scale)
        plain = engine.draw(job.model_copy(update={"negative_prompt": ""}), LORA)
        assert (apart(engine.draw(job, LORA), plain) == 0) is is_silent


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "euler"])
def test_the_interval_is_the_papers(
    engine: Engine, bare: Any, rows: list[int], scheduler: str
) -> None:
    """The first two of eight steps are unguided; the picture is that of stock parts."""
    fields = {"speed_profile": "guidance_interval", "num_inference_steps": 8}
    job = ordered(scheduler=scheduler, **fields)
    drawn = engine.draw(job, LORA)
    assert rows == [1] * 2 + [2] * 6
    assert apart(drawn, by_hand(bare, job)) <= 1


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "euler"])
def test_both_ends_of_the_interval(
    engine: Engine, bare: Any, rows: list[int], scheduler: str
) -> None:
    """Of twenty steps five are too noisy and one is too clean; the sixth, at 5.40, is guided."""
    fields = {"speed_profile": "guidance_interval", "num_inference_steps": 20}
    engine.draw(ordered(scheduler=scheduler, **fields), LORA)
    assert rows == [1] * 5 + [2] * 14 + [1]
    own_scheduler = make_scheduler(scheduler, bare.scheduler.config)
    own_scheduler.set_timesteps(20)
    assert rows == [1 + guides for guides in paper_guides(bare, own_scheduler.timesteps)]


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_a_profile_guides_nothing_that_is_unguided(
    engine: Engine, rows: list[int], scale: float
) -> None:
    """At a scale of 1 or less the interval's steps are those of no profile."""
    job = ordered(guidance_scale=scale)
    plain = engine.draw(job, LORA)
    profiled = job.model_copy(update={"speed_profile": "guidance_interval"})
    assert apart(engine.draw(profiled, LORA), plain) == 0
    assert rows == [1] * 8


def test_unguided_beside_guided(engine: Engine, rows: list[int]) -> None:
    """In one batch of pictures with one row, with two, and with now one and now two."""
    jobs = [
        ordered(guidance_scale=1.0),
        ordered(seed=4),
        ordered(seed=5, guidance_scale=0.5, scheduler="euler"),
        ordered(seed=6, speed_profile="guidance_interval"),
    ]
    alone = [engine.draw(job, LORA) for job in jobs]
    rows.clear()
    together = drawn_together(engine, jobs, [LORA] * 4)
    assert rows == [5, 6, 6, 6]
    for (_, picture), expected in zip(together, alone, strict=True):
        assert apart(picture, expected) <= 1


@torch.no_grad()
def test_the_prompt_comes_last(bare: Any) -> None:
    """In whole and in pieces: the rows that an unguided step takes are the prompt's."""
    job = ordered()
    prompt, negative = bare.encode_prompt(job.prompt, "cpu", 1, True, job.negative_prompt)
    expected = torch.cat([negative, prompt])
    assert (prompt - negative).abs().max() > 0.1
    assert torch.equal(encode_prompt(bare, job), expected)
    weighted = encode_prompt(bare, job.model_copy(update={"prompt_syntax": "compel"}))
    for pieces in (weighted, encode_pieces(bare, job, "cpu")):
        assert (pieces - expected).abs().max() < 1e-4
    first, second = (
        encode_prompt(bare, job.model_copy(update=fields))
        for fields in ({"prompt_tags": LONG}, {"negative_prompt": " ".join(LONG)})
    )
    assert first.shape == second.shape and first.shape[1] > 77
    assert (first[0, :77] - negative).abs().max() < 1e-4
    assert (second[1, :77] - prompt).abs().max() < 1e-4
