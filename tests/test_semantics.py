"""What the system promises in pictures, told by the judge on the trained pocket model."""

from collections.abc import Callable
from concurrent.futures import Future
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

Draw = Callable[..., list[Image.Image]]
LORAS = packaged() / "pocket-loras"


@pytest.fixture(scope="module", name="draw")
def _draw() -> Any:
    """``draw(*orders, **common)``: pictures by the engine on the packaged model, side by side.

    An order is its tags, or a dictionary of fields; ``style`` is a LoRA of the package.
    """
    engine = Engine(load_pipeline(str(packaged() / "pocket"), device="cpu"))

    def submit(fields: dict[str, Any]) -> "Future[Image.Image]":
        style = fields.pop("style", "mosaic")
        job = GenerationJob(
            generation_id=1,
            style_id=style,
            lora_model_url=f"s3://models/{style}.safetensors",
            artist_name="Zoë",
            webhook_url="http://localhost",
            **{"lora_scale": 0.0, "num_inference_steps": 20, **fields},
        )
        return engine.submit(job, LORAS / f"{style}.safetensors")

    def draw(*orders: tuple[str, ...] | dict[str, Any], **common: Any) -> list[Image.Image]:
        fields = [o if isinstance(o, dict) else {"prompt_tags": o} for o in orders]
        return [picture.result() for picture in [submit(common | own) for own in fields]]

    yield draw
    engine.close()


GROUNDS = ("white", "yellow", "blue", "black")


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "euler"])
def test_the_prompt_decides_the_colours(draw: Draw, scheduler: str) -> None:
    """One word changed, one colour changed: at least five of six pictures show both colours."""
    asked = [(colour, ground) for ground in GROUNDS[:3] for colour in ("red", "green")]
    orders = [(colour, "heart", f"{ground} background") for colour, ground in asked]
    seen = [judge(picture) for picture in draw(*orders, scheduler=scheduler)]
    assert sum((s.colour, s.background) == a for s, a in zip(seen, asked, strict=True)) >= 5


def test_the_prompt_decides_the_shape(draw: Draw) -> None:
    """One word changed, one shape changed: at least five of six pictures show theirs."""
    pictures = draw(*(("red", shape, "white background") for shape in SHAPES))
    seen = [judge(picture).shape for picture in pictures]
    assert sum(a == b for a, b in zip(seen, SHAPES, strict=True)) >= 5, seen


@pytest.mark.parametrize("aspect", ["2:2", "1:2"])
def test_every_format_obeys(draw: Draw, aspect: str) -> None:
    """Larger and taller pictures show the same colours."""
    (picture,) = draw(("red", "heart", "white background"), aspect_ratio=aspect)
    seen = judge(picture)
    assert (seen.colour, seen.background) == ("red", "white")


@pytest.mark.parametrize("style", STYLES)
def test_each_artist_changes_the_picture(draw: Draw, style: str) -> None:
    """Strength 0 is the plain picture, 1 the artist's, and one half lies between."""
    tags = ("blue", "star", "yellow background")
    pictures = draw(*({"lora_scale": s} for s in (0.0, 0.5, 1.0)), prompt_tags=tags, style=style)
    none, half, full = (np.asarray(picture, dtype=float) for picture in pictures)
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
    orders = [(colour, shape, f"{ground} background") for colour, shape, ground in asked]
    seen = [judge(picture).style for picture in draw(*orders, style=style, lora_scale=1.0)]
    assert seen.count(style) >= 3 and not set(seen) & (STYLES.keys() - {style}), seen


def test_the_base_has_no_artists_style(draw: Draw) -> None:
    """Without a LoRA the judge recognises nobody."""
    (picture,) = draw(("red", "heart", "white background"))
    assert judge(picture).style == "plain"


def test_seeds_differ_and_repeat(draw: Draw) -> None:
    """One seed is one picture, 0 is a seed, and all of them show the prompt's colours."""
    tags = ("red", "heart", "white background")
    pictures = [picture for seed in (0, 1, 0) for picture in draw(tags, seed=seed)]
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
