"""The signature's promises: inside the margins, legible, never boxes, the input untouched."""

from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools import subset
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, features

from stylegen.job import InvalidMessage, SignatureUnrenderable
from stylegen.signature import (
    add_signature_image,
    add_watermark,
    choose_font,
    choose_fonts,
    covered_scripts,
    create_text_overlay,
    get_position,
    normalise_name,
    packaged_font,
    read_signature_image,
)
from stylegen.signature.fonts import font_characters, installed_fonts
from stylegen.signature.overlay import fade

DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
POSITIONS = ("bottom-right", "bottom-left", "top-right", "top-left")
LONG = (
    "아주 긴 이름을 가진 예술가 김하늘, of the Very Long Named Society of Painters in Ink and Water"
)
LETTERS = "김하늘이박최정 ZoëÅsaJean-Luc 'yjgpQ|_·春ハル"
positions = st.sampled_from(POSITIONS)
names = st.text(LETTERS, min_size=1, max_size=60).filter(lambda name: name.strip())
sides = st.integers(96, 700)


def margin_of(size: tuple[int, int]) -> int:
    """3 % of the short side, as the documents have it."""
    return max(2, round(0.03 * min(size)))


def plain(size: tuple[int, int], colour: str = "teal") -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, colour)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Independent random pixels: the busiest ground there is."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int] | None:
    """The smallest box that holds every changed pixel."""
    return ImageChops.difference(before, after).getbbox()


@examples(60)
@given(names, sides, sides, positions, st.integers(20, 255))
def test_signature_stays_inside_margins(name, width, height, position, opacity):
    """It changes pixels, all of them in its corner and none in the margin; size and mode stay."""
    ground = plain((width, height))
    try:
        signed = add_watermark(ground, name, position, opacity)
    except SignatureUnrenderable:
        assert len(name) > 10 or min(width, height) < 128
        return
    assert (signed.size, signed.mode) == (ground.size, "RGB")
    assert ground == plain((width, height))
    box, margin = changed(ground, signed), margin_of(ground.size)
    assert box is not None
    left, top, right, bottom = box
    assert left >= margin and top >= margin
    assert right <= width - margin and bottom <= height - margin
    overlay = create_text_overlay(name, size=ground.size)
    x, y = get_position(ground.size, position, overlay.size)
    assert x <= left and y <= top and right <= x + overlay.width and bottom <= y + overlay.height


@examples(20)
@given(names, positions)
def test_opacity_zero_leaves_the_picture_equal(name, position):
    """Opacity 0 is no signature."""
    ground = noise((300, 200))
    assert add_watermark(ground, name, position, 0) == ground


@pytest.mark.parametrize("opacity", [0, 1, 64, 127, 128, 254, 255])
def test_opacity_is_a_share_of_255(opacity):
    """Every shade of ink, to the nearest level; 255 is the overlay as it is."""
    overlay = Image.new("RGBA", (256, 1), "white")
    overlay.putalpha(Image.fromarray(np.arange(256, dtype=np.uint8)[None]))
    faded = np.asarray(fade(overlay, opacity).getchannel("A"))[0]
    assert np.abs(faded - np.arange(256) * opacity / 255).max() <= 0.5


@examples(30)
@given(names)
def test_no_ink_is_cut_off(name):
    """The overlay's outermost pixels are empty: no letter is cropped."""
    alpha = np.asarray(create_text_overlay(name, 255, size=(512, 512)).getchannel("A"))
    for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        assert not edge.any()


def luminance(pixels: np.ndarray) -> np.ndarray:
    """WCAG 2 relative luminance of sRGB pixels."""
    channels = pixels / 255.0
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(ground: Image.Image, name: str) -> float:
    """Mean contrast of the letters against what surrounds them, outline and ground alike.

    "Letters" are the overlay's light pixels. Their surrounding is the ring of pixels at most
    two away from a letter. Both are measured in the signed picture, half-covered pixels included.
    """
    overlay = create_text_overlay(name, size=ground.size)
    x, y = get_position(ground.size, "bottom-right", overlay.size)
    signed = np.asarray(add_watermark(ground, name))[y : y + overlay.height, x : x + overlay.width]
    red, alpha = np.asarray(overlay)[..., 0], np.asarray(overlay)[..., 3]
    letters = (red > 127) & (alpha > 0)
    ring = np.zeros_like(letters)
    for dx in range(-2, 3):
        for dy in range(-2, 3):
            ring |= np.roll(letters, (dy, dx), (0, 1))
    ring &= ~letters
    light, dark = luminance(signed[letters]).mean(), luminance(signed[ring]).mean()
    return (max(light, dark) + 0.05) / (min(light, dark) + 0.05)


GROUNDS = {
    **{f"grey {v}": (lambda size, v=v: plain(size, (v, v, v))) for v in range(0, 256, 51)},
    "red": lambda size: plain(size, "red"),
    "blue": lambda size: plain(size, "blue"),
    "yellow": lambda size: plain(size, "yellow"),
    "noise": noise,
}


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("size", [(512, 512), (512, 1024), (768, 768)])
@pytest.mark.parametrize("name", ["김하늘", "Zoë", LONG])
def test_contrast_at_default_opacity(ground, size, name):
    """At least 3:1, WCAG's bar for large text, on light, dark, coloured and busy grounds."""
    assert contrast(GROUNDS[ground](size), name) >= 3


def test_size_follows_the_short_side():
    """A picture of twice the size has a signature of about twice the size."""
    small, large = (create_text_overlay("김하늘", size=(s, 2 * s)) for s in (512, 1024))
    assert 1.8 < large.height / small.height < 2.2
    assert create_text_overlay("김하늘", size=(512, 1024)).size == small.size


@pytest.mark.parametrize("name", [LONG, "가" * 200, "W" * 200, "Wolfgang " * 22, "한 " * 100])
@pytest.mark.parametrize("size", [(512, 512), (512, 1024), (768, 768)])
def test_long_names_fit_ordered_sizes(name, size):
    """The contract's longest names fit every size that can be ordered, in a third of the height."""
    overlay = create_text_overlay(name, size=size)
    assert overlay.width <= size[0] - 2 * margin_of(size) and overlay.height <= size[1] * 0.34


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (512, 10), (10, 512), (30, 30)])
def test_too_small_a_picture_is_refused(size):
    """No room for letters is an error, not a signature that leaves the picture."""
    with pytest.raises(SignatureUnrenderable):
        add_watermark(plain(size), "Ada Lovelace")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"]
)
def test_any_mode_comes_back_as_rgb(mode):
    """Modes are converted, the input is not."""
    ground = Image.new(mode, (256, 256))
    before = ground.tobytes()
    assert add_watermark(ground, "Zoë").mode == "RGB"
    assert (ground.mode, ground.tobytes()) == (mode, before)


@pytest.mark.parametrize("opacity", [-1, 256, 1.5, "128", None])
def test_opacity_is_checked(opacity):
    """Opacity is a byte."""
    with pytest.raises(InvalidMessage, match="opacity"):
        add_watermark(plain((256, 256)), "Zoë", opacity=opacity)


@pytest.mark.parametrize("position", ["", "center", "bottom", "left-top", "BOTTOM-LEFT", None])
def test_position_is_checked(position):
    """There are four corners."""
    with pytest.raises(InvalidMessage, match="position"):
        add_watermark(plain((256, 256)), "Zoë", position)


@pytest.mark.parametrize(
    "name",
    ["", "  ", "a\x00", "a\nb", "\ta", "a\u202eb", "a\u2066b", "\u061ca", "a\u200bb", "\ud83d"]
    + ["\ue000", "a\u2028b", "\u3164", "\u2060", "x" * 1000],
)
def test_deceptive_and_empty_names_are_refused(name):
    """Control, override, invisible, private, blank and endless names, each with its reason."""
    with pytest.raises(SignatureUnrenderable, match="name (holds|is|has|leaves)"):
        add_watermark(plain((256, 256)), name)


def test_normal_forms_look_the_same():
    """Composed and decomposed spelling give one picture."""
    ground = plain((256, 256))
    loose = "\u1100\u1175\u11b7 Zoe\u0308"
    assert add_watermark(ground, loose) == add_watermark(ground, "김 Zoë")


def test_operators_font_comes_first():
    """It is used when it knows the name, and passed over when it does not."""
    assert choose_font("Paweł", DEJAVU) == DEJAVU
    assert choose_font("김하늘", DEJAVU) == packaged_font()
    assert choose_font("김하늘", Path("missing.ttf")) == packaged_font()
    assert create_text_overlay("Zoë") != create_text_overlay("Zoë", font_path=DEJAVU)


@pytest.fixture(name="no_system_fonts")
def _no_system_fonts(monkeypatch):
    monkeypatch.setattr("stylegen.signature.fonts.FONT_FOLDERS", ())


@pytest.mark.usefixtures("no_system_fonts")
def test_unknown_characters_are_named():
    """The error says what is missing, and only that."""
    with pytest.raises(SignatureUnrenderable, match="CUNEIFORM SIGN A") as caught:
        create_text_overlay("Zoë 𒀀")
    assert "LATIN" not in str(caught.value) and "/" not in str(caught.value)
    with pytest.raises(SignatureUnrenderable, match="LATIN SMALL LETTER L WITH STROKE"):
        create_text_overlay("Paweł")


def test_stand_ins_and_broken_fonts_are_passed_over(tmp_path, monkeypatch):
    """A font folder may hold anything."""
    for name in ("broken.ttf", "LastResortHE-Regular.ttf", "AdobeBlank2.otf", "notes.txt"):
        (tmp_path / name).write_bytes(b"\x00\x01\x00\x00 no font")
    (tmp_path / "DejaVuSans-Bold.ttf").write_bytes(DEJAVU.read_bytes())
    (tmp_path / "DejaVuSans.ttf").write_bytes(DEJAVU.read_bytes())
    folders = tmp_path, tmp_path / "missing"
    found = installed_fonts(folders)
    assert {path.name for path in found} == {"broken.ttf", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"}
    assert found[-1].name == "DejaVuSans-Bold.ttf"
    monkeypatch.setattr("stylegen.signature.fonts.FONT_FOLDERS", folders)
    assert choose_font("Paweł") == tmp_path / "DejaVuSans.ttf"


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no Raqm")
def test_shaped_script_is_joined():
    """Arabic letters change their form when they join: the word is narrower than its letters."""
    word = create_text_overlay("سسسس", font_path=DEJAVU).width
    letters = sum(create_text_overlay("س", font_path=DEJAVU).width for _ in range(4))
    assert word < 0.8 * letters


@pytest.mark.parametrize("name", ["فاطمة", "נועה", "x\u0331", "काव्या", "\u1100\u119e"])
def test_shaped_script_without_raqm_is_refused(name, monkeypatch):
    """Unjoined letters would be as wrong as boxes."""
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(SignatureUnrenderable, match="shaping"):
        create_text_overlay(name, font_path=DEJAVU)


def test_the_guides_own_test():
    """The code guide's test of `add_watermark`, unchanged."""
    image = Image.new("RGB", (512, 512), color="white")
    watermarked = add_watermark(image, artist_name="TestArtist", opacity=128)
    assert watermarked.size == (512, 512)
    assert watermarked.mode == "RGB"
    assert watermarked != image


def test_mixed_scripts_are_drawn_by_runs(monkeypatch):
    """A name that no one font knows is drawn, each run in a font that has it."""
    monkeypatch.setattr("stylegen.signature.fonts.FONT_FOLDERS", (DEJAVU.parent,))
    name = "김하늘 Łukasz"
    assert [font.name for font in choose_fonts(name)] == [
        "NotoSansKR-Regular.otf",
        "DejaVuSans.ttf",
    ]
    both = create_text_overlay(name)
    halves = [create_text_overlay(half) for half in ("김하늘", "Łukasz")]
    assert both.width > max(half.width for half in halves)
    assert both.width < sum(half.width for half in halves) * 1.2
    assert add_watermark(Image.new("RGB", (512, 512)), name).size == (512, 512)


def test_mixed_shaped_scripts_are_refused(monkeypatch):
    """Runs would break the joins of Arabic: no half-right name."""
    monkeypatch.setattr("stylegen.signature.fonts.FONT_FOLDERS", (DEJAVU.parent,))
    with pytest.raises(SignatureUnrenderable):
        create_text_overlay("김하늘 أمل")


def test_coverage_is_told_by_script(monkeypatch):
    """With the packaged font alone: the scripts of the platform's home, and no more."""
    monkeypatch.setattr("stylegen.signature.fonts.FONT_FOLDERS", ())
    covered = covered_scripts()
    assert [name for name, is_covered in covered.items() if is_covered] == [
        "Latin",
        "Hangul",
        "Kana",
        "Han",
        "Cyrillic",
    ]


def test_only_spaces_are_taken_from_a_name():
    """At its ends, and all but one between words; every other character stays as it is."""
    for sign in sorted(set(map(chr, range(33, 127))) | set("김é±山\u0627")):
        assert (
            normalise_name(f"  {sign}a{sign} {sign}   b{sign} ") == f"{sign}a{sign} {sign} b{sign}"
        )
    assert normalise_name("Zoe\u0308") == "Zoë"


def test_a_name_may_have_256_characters():
    """And not one more."""
    assert normalise_name("x" * 256) == "x" * 256
    with pytest.raises(SignatureUnrenderable, match="longer than 256"):
        normalise_name("x" * 257)


def test_a_font_may_have_exactly_a_names_letters(tmp_path):
    """A font that was cut down to the letters of one name draws it."""
    options = subset.Options(notdef_outline=True)
    small = subset.load_font(DEJAVU, options)
    cutter = subset.Subsetter(options)
    cutter.populate(text="Zoë")
    cutter.subset(small)
    subset.save_font(small, tmp_path / "zoe.ttf", options)
    assert font_characters(tmp_path / "zoe.ttf") == set(map(ord, "Zoë"))
    assert choose_font("Zoë", tmp_path / "zoe.ttf") == tmp_path / "zoe.ttf"
    assert choose_font("Zoe", tmp_path / "zoe.ttf") == packaged_font()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("size", [(400, 200), (40, 400)])
def test_a_drawn_signature_touches_its_margins(position, size):
    """With its halo, and no further: a margin from both of its edges, whatever its form."""
    hand = Image.new("RGBA", (size[0] + 40, size[1] + 40))
    hand.paste((20, 20, 60, 255), (20, 20, 20 + size[0], 20 + size[1]))
    buffer = BytesIO()
    hand.save(buffer, "PNG")
    ground = Image.new("RGB", (512, 384), "gray")
    signed = add_signature_image(ground, read_signature_image(buffer.getvalue()), position, 255)
    left, top, right, bottom = ImageChops.difference(signed, ground).getbbox()
    margin = margin_of(ground.size)
    vertical, horizontal = position.split("-")
    assert (left if horizontal == "left" else 512 - right) == margin
    assert (top if vertical == "top" else 384 - bottom) == margin
    halo = 6  # at most, on both sides together
    width, height = round(512 * 0.34), round(384 * 0.14)
    assert right - left <= width + halo and bottom - top <= height + halo
    assert right - left >= width or bottom - top >= height, "as large as it may be"


@pytest.mark.parametrize(("side", "taken"), [(4096, True), (4097, False)])
def test_a_signature_image_may_be_as_long_as_its_limit(side, taken):
    """Neither side is longer, before anything is decoded."""
    for size in ((side, 2), (2, side)):
        image, buffer = Image.new("RGBA", size), BytesIO()
        image.putpixel((1, 1), (0, 0, 0, 255))
        image.save(buffer, "PNG")
        with nullcontext() if taken else pytest.raises(SignatureUnrenderable):
            assert read_signature_image(buffer.getvalue()).size == (1, 1)
