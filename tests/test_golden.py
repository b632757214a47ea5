"""Golden pictures of signatures. ``python tests/test_golden.py`` draws them anew; look at them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stylegen.signature import add_signature_image, add_watermark

FOLDER = Path(__file__).parent / "golden"
NAMES = {"hangul": "김하늘", "latin": "Zoë", "han": "山田太郎", "cyrillic": "Женя"}
LONG = "아주 긴 이름을 가진 예술가 김하늘, of the Society of Painters in Ink and Water"


def busy_ground() -> Image.Image:
    """White, black and stripes in one picture, without any randomness."""
    ground = Image.new("RGB", (384, 384), "white")
    pen = ImageDraw.Draw(ground)
    pen.rectangle((192, 192, 288, 384), fill="black")
    for x in range(288, 384, 6):
        pen.line([(x, 192), (x, 384)], fill="black", width=3)
    return ground


def hand() -> Image.Image:
    """A stroke, as an artist's own signature."""
    mark = Image.new("RGBA", (300, 100))
    ImageDraw.Draw(mark).line([(10, 80), (90, 20), (150, 80), (290, 40)], (20, 20, 60, 255), 9)
    return mark


def pictures() -> dict[str, Image.Image]:
    """Every golden picture by name: the signed corner."""
    signed = {name: add_watermark(busy_ground(), text, opacity=200) for name, text in NAMES.items()}
    signed["long"] = add_watermark(busy_ground(), LONG, "bottom-left", opacity=200)
    signed["hand"] = add_signature_image(busy_ground(), hand(), opacity=200)
    return {name: image.crop((0, 300, 384, 384)) for name, image in signed.items()}


@pytest.mark.parametrize("name", [*NAMES, "long", "hand"])
def test_signature_looks_as_it_did(name: str) -> None:
    """The mean difference is under one grey level, so that only a rasteriser's noise passes."""
    with Image.open(FOLDER / f"{name}.png") as golden:
        difference = np.abs(np.asarray(golden.convert("RGB"), float) - np.asarray(pictures()[name]))
    assert difference.mean() < 1.0


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for title, image in pictures().items():
        image.save(FOLDER / f"{title}.png", optimize=True)
