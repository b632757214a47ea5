"""What the system promises in pictures, told by the judge on the trained pocket model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegen.engine import Engine
from stylegen.job import GenerationJob
from stylegen.pipeline import load_pipeline
from stylegen.pocket import STYLES, Judgement, judge, packaged
from stylegen.worker import Parts, handle_generation_task

Draw = Callable[..., Image.Image]
LORAS = packaged() / "pocket-loras"


@pytest.fixture(scope="module", name="draw")
def _draw() -> Any:
    """``draw(tags, style, **fields)``: a picture by the engine on the packaged model."""
    engine = Engine(load_pipeline(str(packaged() / "pocket"), device="cpu"))

    def draw(tags: tuple[str, ...], style: str = "mosaic", **fields: Any) -> Image.Image:
        job = GenerationJob(
            generation_id=1,
            style_id=style,
            lora_model_url=f"s3://models/{style}.safetensors",
            prompt_tags=tags,
            artist_name="Zoë",
            webhook_url="http://localhost",
            **{"lora_scale": 0.0, "num_inference_steps": 30, **fields},
        )
        return engine.draw(job, LORAS / f"{style}.safetensors")

    yield draw
    engine.close()


PROMPTS = {
    ("red", "heart", "white background"): ("heart", "red", "white"),
    ("blue background", "yellow", "star"): ("star", "yellow", "blue"),
    ("green circle", "black background", "large"): ("circle", "green", "black"),
    ("pink", "square", "grey background"): ("square", "pink", "grey"),
}


@pytest.mark.parametrize("tags", PROMPTS)
@pytest.mark.parametrize("scheduler", ["dpmsolver++", "euler"])
def test_the_prompt_decides(draw: Draw, tags: tuple[str, ...], scheduler: str) -> None:
    """Both schedulers draw the shape, colour and ground that the tags name."""
    seen = judge(draw(tags, scheduler=scheduler))
    assert (seen.shape, seen.colour, seen.background) == PROMPTS[tags]


@pytest.mark.parametrize("aspect", ["2:2", "1:2"])
def test_every_format_obeys(draw: Draw, aspect: str) -> None:
    """Larger and taller pictures show the same."""
    seen = judge(draw(("red", "heart", "white background"), aspect_ratio=aspect))
    assert seen == Judgement("heart", "red", "white", "plain")


@pytest.mark.parametrize("style", STYLES)
def test_an_artists_lora_is_recognised(draw: Draw, style: str) -> None:
    """With the LoRA its artist's style, without it the plain one."""
    tags = ("blue", "heart", "white background")
    assert judge(draw(tags, style, lora_scale=1.0)).style == style
    assert judge(draw(tags, style)).style == "plain"


def test_seeds_differ_and_repeat(draw: Draw) -> None:
    """One seed is one picture, 0 is a seed, and all of them show the prompt."""
    tags = ("red", "heart", "white background")
    pictures = [draw(tags, seed=seed) for seed in (0, 1, 0)]
    assert pictures[0].tobytes() == pictures[2].tobytes() != pictures[1].tobytes()
    assert {judge(picture).colour for picture in pictures} == {"red"}


def test_what_a_customer_receives(parts: Parts, order: dict[str, Any]) -> None:
    """The stored JPEG, signed and labelled, shows the order in its artist's style."""
    outcome = handle_generation_task(order | {"num_inference_steps": 30}, parts)
    assert outcome.error_code is None
    path: Path = parts.store.root / "generations/gen_500.jpg"  # type: ignore[attr-defined]
    with Image.open(path) as picture:
        seen = judge(picture)
    assert (seen.colour, seen.background, seen.style) == ("red", "white", "watercolour")
