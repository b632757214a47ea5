"""What the system promises in pictures, told by the judge on the trained pocket model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylegen.job import GenerationJob, check_job
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.pocket import SHAPES, STYLES, judge, packaged
from stylegen.signature.provenance import read_provenance
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
            **{"lora_scale": 0.0, "num_inference_steps": 20, **fields},
        )
        return engine.draw(job, LORAS / f"{style}.safetensors")

    yield draw
    engine.close()


GROUNDS = ("white", "yellow", "blue", "black")


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "euler"])
def test_the_prompt_decides_the_colours(draw: Draw, scheduler: str) -> None:
    """One word changed, one colour changed: at least five of six pictures show both colours."""
    asked = [(colour, ground) for ground in GROUNDS[:3] for colour in ("red", "green")]
    pictures = [draw((c, "heart", f"{g} background"), scheduler=scheduler) for c, g in asked]
    seen = [judge(picture) for picture in pictures]
    assert sum((s.colour, s.background) == a for s, a in zip(seen, asked, strict=True)) >= 5


def test_the_prompt_decides_the_shape(draw: Draw) -> None:
    """One word changed, one shape changed: at least five of six pictures show theirs."""
    seen = [judge(draw(("red", shape, "white background"))).shape for shape in SHAPES]
    assert sum(a == b for a, b in zip(seen, SHAPES, strict=True)) >= 5, seen


@pytest.mark.parametrize("aspect", ["2:2", "1:2"])
def test_every_format_obeys(draw: Draw, aspect: str) -> None:
    """Larger and taller pictures show the same colours."""
    seen = judge(draw(("red", "heart", "white background"), aspect_ratio=aspect))
    assert (seen.colour, seen.background) == ("red", "white")


@pytest.mark.parametrize("style", STYLES)
def test_each_artist_changes_the_picture(draw: Draw, style: str) -> None:
    """Strength 0 is the plain picture, 1 the artist's, and one half lies between."""
    tags = ("blue", "star", "yellow background")
    none, half, full = (
        np.asarray(draw(tags, style, lora_scale=scale), dtype=float) for scale in (0.0, 0.5, 1.0)
    )
    whole = np.abs(full - none).mean()
    assert whole > 5
    assert max(np.abs(half - none).mean(), np.abs(full - half).mean()) < whole


@pytest.mark.parametrize("style", STYLES)
def test_each_artist_is_recognised(draw: Draw, style: str) -> None:
    """The judge tells three styles of four or better, and takes none for another's."""
    asked = [
        ("red", "heart", "white"),
        ("blue", "star", "yellow"),
        ("green", "circle", "grey"),
        ("yellow", "triangle", "blue"),
    ]
    seen = [
        judge(draw((colour, shape, f"{ground} background"), style, lora_scale=1.0)).style
        for colour, shape, ground in asked
    ]
    assert seen.count(style) >= 3 and not set(seen) & (STYLES.keys() - {style}), seen


def test_the_base_has_no_artists_style(draw: Draw) -> None:
    """Without a LoRA the judge recognises nobody."""
    assert judge(draw(("red", "heart", "white background"))).style == "plain"


def test_seeds_differ_and_repeat(draw: Draw) -> None:
    """One seed is one picture, 0 is a seed, and all of them show the prompt's colours."""
    tags = ("red", "heart", "white background")
    pictures = [draw(tags, seed=seed) for seed in (0, 1, 0)]
    assert pictures[0].tobytes() == pictures[2].tobytes() != pictures[1].tobytes()
    assert {judge(picture).colour for picture in pictures} == {"red"}


def test_what_a_customer_receives(parts: Parts, order: dict[str, Any]) -> None:
    """The stored JPEG shows what was ordered, is signed in one corner, and says what it is."""
    hatching = order["lora_model_url"].replace("style_10", "hatching")
    order |= {"num_inference_steps": 30, "lora_model_url": hatching}
    outcome = handle_generation_task(order, parts)
    assert outcome.error_code is None
    path: Path = parts.store.root / "generations/gen_500.jpg"  # type: ignore[attr-defined]
    with Image.open(path) as picture:
        seen, stored = judge(picture), np.asarray(picture).astype(int)
    assert (seen.colour, seen.shape, seen.background) == ("red", "heart", "white")
    assert seen.style == "hatching"
    unsigned = np.asarray(parts.draw(check_job(order), LORAS / "hatching.safetensors"))
    difference = np.abs(stored - unsigned).max(axis=-1)
    assert (difference[464:, 384:] > 60).mean() > 0.1
    difference[464:, 384:] = 0
    assert difference.mean() < 3 and (difference > 40).mean() < 0.001
    found = read_provenance(path)
    assert found["artist"] == found["creator"] == "김하늘"
    assert found["digital_source_type"].endswith("/trainedAlgorithmicMedia")
