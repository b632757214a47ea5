"""The stored JPEG beside the unsigned picture: signed where and as strongly as was asked.

A smooth ground stands for drawing, so that whatever differs from it by more than JPEG's own error
is the signature. Sizes and strengths are those of the contract, not the code's constants.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOKEN
from PIL import Image

from stylegen.storage import FolderStore
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, handle_generation_task

Order = dict[str, Any]
Box = tuple[int, int, int, int]
POSITIONS = ("bottom-right", "bottom-left", "top-right", "top-left")
JPEG_ERROR = 4  # grey levels that quality 95 changes a smooth ground by, at most
INK = (200, 30, 60)  # of the artist's own hand


def ground(size: tuple[int, int]) -> np.ndarray:
    """A smooth picture of middle shades, on which black, white and `INK` all show."""
    across, down = np.meshgrid(np.linspace(90, 150, size[0]), np.linspace(90, 150, size[1]))
    return np.stack([across, down, np.full_like(across, 120)], axis=-1).round().astype(np.uint8)


@pytest.fixture(name="painted")
def _painted(tmp_path: Path, backend: WebhookReceiver) -> Parts:
    """Parts that draw `ground`; their bucket has a LoRA and a PNG of the artist's hand."""
    hand = Image.new("RGBA", (340, 140))
    hand.paste((*INK, 255), (20, 20, 320, 120))  # ink of 300x100 in the middle of nothing
    png = io.BytesIO()
    hand.save(png, "PNG")
    store = FolderStore(tmp_path)
    store.put("models/style_10.safetensors", b"tensors", "")
    store.put("models/hand.png", png.getvalue(), "image/png")

    def draw(job: Any, *_: Any, **__: Any) -> Image.Image:
        return Image.fromarray(ground(job.resolution))

    return Parts(draw, store, (backend.url,), TOKEN)


def stored(parts: Parts, order: Order, **changes: Any) -> np.ndarray:
    """Do a job that must succeed; the stored JPEG's pixels ``[height, width, 3]``."""
    outcome = handle_generation_task(order | changes, parts)
    assert outcome.error_code is None, outcome.error_message
    path = parts.store.root / "generations/gen_500.jpg"  # type: ignore[attr-defined]
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        return np.asarray(picture).astype(int)


def difference(picture: np.ndarray) -> np.ndarray:
    """How far each pixel is from the unsigned picture: grey levels ``[height, width]``."""
    height, width, _ = picture.shape
    return np.abs(picture - ground((width, height))).max(axis=-1)


def signed_box(picture: np.ndarray) -> Box:
    """Left, top, right and bottom of what was signed."""
    rows, columns = np.nonzero(difference(picture) > 40)
    assert rows.size, "nothing is signed"
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def check_place(picture: np.ndarray, position: str, extent: tuple[range, range]) -> None:
    """The signature is in its corner, 3 % of the short side from both edges; nothing else is."""
    height, width, _ = picture.shape
    margin = round(0.03 * min(width, height))
    left, top, right, bottom = signed_box(picture)
    gaps = {"left": left, "top": top, "right": width - right, "bottom": height - bottom}
    for edge in position.split("-"):
        assert margin <= gaps[edge] <= margin + 8, (edge, gaps)
    assert right - left in extent[0] and bottom - top in extent[1]
    outside = np.ones((height, width), bool)
    outside[max(0, top - 16) : bottom + 16, max(0, left - 16) : right + 16] = False
    assert difference(picture)[outside].max() <= JPEG_ERROR


@pytest.mark.parametrize("ratio", ["1:1", "2:2", "1:2"])
@pytest.mark.parametrize("position", [None, *POSITIONS])
def test_the_name_is_in_its_corner(
    painted: Parts, order: Order, position: str | None, ratio: str
) -> None:
    """Letters of 5 % of the short side, white on a black outline; by default lower right."""
    asked = {"opacity": 255} | ({"position": position} if position else {})
    picture = stored(painted, order, signature=asked, aspect_ratio=ratio)
    letter = round(0.05 * min(picture.shape[:2]))
    extent = range(int(2.2 * letter), 4 * letter), range(int(0.8 * letter), int(1.7 * letter))
    check_place(picture, position or "bottom-right", extent)
    left, top, right, bottom = signed_box(picture)
    inside = picture[top:bottom, left:right]
    assert (inside.min(axis=-1) > 240).mean() > 0.1 and (inside.max(axis=-1) < 15).mean() > 0.2


@pytest.mark.parametrize("ratio", ["1:1", "2:2", "1:2"])
@pytest.mark.parametrize("position", [None, *POSITIONS])
def test_the_artists_own_hand_is_in_its_corner(
    painted: Parts, order: Order, position: str | None, ratio: str
) -> None:
    """Its ink alone, in its colour, a third of the width or a seventh of the short side."""
    asked = {"image_url": "s3://models/hand.png", "opacity": 255}
    asked |= {"position": position} if position else {}
    picture = stored(painted, order, signature=asked, aspect_ratio=ratio)
    height, width, _ = picture.shape
    ink_width = min(0.34 * width, 3 * 0.14 * min(width, height))
    extent = [range(int(side), int(side + 0.1 * ink_width)) for side in (ink_width, ink_width / 3)]
    check_place(picture, position or "bottom-right", (extent[0], extent[1]))
    left, top, right, bottom = signed_box(picture)
    middle = picture[(top + bottom) // 2, (left + right) // 2]
    assert np.abs(middle - INK).max() <= JPEG_ERROR
    assert picture[(top + bottom) // 2, left + 1].min() > 215  # a light edge around dark ink


def strength(picture: np.ndarray, solid: np.ndarray) -> float:
    """How much of the solid signature's difference a picture has, over its ink: 0 to 1."""
    before = ground((solid.shape[1], solid.shape[0])).astype(int)
    ink = difference(solid) > 60
    return float(
        ((picture - before)[ink] / np.where(solid == before, 1, solid - before)[ink]).mean()
    )


@pytest.mark.parametrize("image_url", [None, "s3://models/hand.png"], ids=["name", "hand"])
def test_opacity_is_the_share_of_the_ink(
    painted: Parts, order: Order, image_url: str | None
) -> None:
    """From nothing at 0 to all of it at 255, in proportion; 128 unless asked otherwise."""
    asked = {"image_url": image_url} if image_url else {}
    solid = stored(painted, order, signature=asked | {"opacity": 255})
    for opacity in (16, 64, 127, 160, 224):
        picture = stored(painted, order, signature=asked | {"opacity": opacity})
        assert strength(picture, solid) == pytest.approx(opacity / 255, abs=0.02), opacity
    if image_url is None:  # a drawn signature that nobody sees is refused
        unseen = stored(painted, order, signature=asked | {"opacity": 0})
        assert difference(unseen).max() <= JPEG_ERROR
    default = stored(painted, order, **({"signature": asked} if asked else {}))
    assert strength(default, solid) == pytest.approx(128 / 255, abs=0.02)


def test_an_unusable_hand_costs_no_picture(painted: Parts, order: Order) -> None:
    """Cut off, missing, or somewhere else: the job fails before anything is drawn."""
    png = painted.store.read("models/hand.png") or b""
    painted.store.put("models/broken.png", png[:60], "image/png")
    undrawable = replace(painted, draw=None)
    codes = {"s3://models/broken.png": "SIGNATURE_UNRENDERABLE"}
    codes |= {"s3://models/none.png": "SIGNATURE_UNRENDERABLE"}
    codes |= {"https://evil.example/x.png": "INVALID_MESSAGE"}
    for url, code in codes.items():
        outcome = handle_generation_task(order | {"signature": {"image_url": url}}, undrawable)
        assert outcome.error_code == code
    assert painted.store.read("generations/gen_500.jpg") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"artist_name": "a\u202eb"},
        {"signature": {"image_url": "s3://models/hand.png", "opacity": 0}},
    ],
    ids=["name", "opacity"],
)
def test_a_hand_excuses_neither_name_nor_ink(
    painted: Parts, order: Order, changes: dict[str, Any]
) -> None:
    """The label has the name, and the picture the ink; nothing is drawn without them."""
    asked = {"signature": {"image_url": "s3://models/hand.png"}} | changes
    outcome = handle_generation_task(order | asked, replace(painted, draw=None))
    assert outcome.error_code == "SIGNATURE_UNRENDERABLE"


@pytest.mark.parametrize(("beyond", "code"), [(0, None), (1, "SIGNATURE_UNRENDERABLE")])
def test_a_hand_has_five_mebibytes(
    painted: Parts, order: Order, beyond: int, code: str | None
) -> None:
    """So many are taken, and not one more."""
    png = (painted.store.read("models/hand.png") or b"").ljust(5 * 2**20 + beyond, b"\0")
    painted.store.put("models/large.png", png, "image/png")
    asked = {"signature": {"image_url": "s3://models/large.png"}}
    assert handle_generation_task(order | asked, painted).error_code == code
