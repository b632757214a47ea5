"""Messages and prompts that are made to hurt: each ends in its one clear error, and fast."""

import io
import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from lora_files import write_diffusers
from PIL import Image
from safetensors.torch import load_file, save_file

from stylegen.fields import MAX_WEIGHTED_DEPTH, MAX_WEIGHTED_LENGTH, check_weighted
from stylegen.job import (
    GenerationJob,
    InvalidMessage,
    LoraInvalid,
    SignatureUnrenderable,
    check_job,
    parse_job,
)
from stylegen.pipeline.adapter import read_adapter
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.prompt import encode_prompt
from stylegen.signature import (
    add_signature_image,
    create_text_overlay,
    normalise_name,
    read_signature_image,
)

FIELDS: dict[str, Any] = {
    "generation_id": 1,
    "style_id": 1,
    "lora_model_url": "s3://models/a.safetensors",
    "prompt_tags": ["rose"],
    "artist_name": "Zoë",
    "webhook_url": "https://a.example",
}
WEIGHTED = FIELDS | {"prompt_syntax": "compel"}
SECONDS = 6.0
"""Of CPU for a text that takes 0.6 s on a machine that does nothing else."""

# Weighted prompts


def nested(depth: int) -> str:
    """Brackets in brackets."""
    return "(" * depth + "rose" + ")1.1" * depth


def filled(unit: str) -> str:
    """The longest text that repeats `unit`."""
    return (unit * MAX_WEIGHTED_LENGTH)[:MAX_WEIGHTED_LENGTH]


@pytest.mark.parametrize("field", ["prompt_tags", "negative_prompt"])
@pytest.mark.parametrize(
    "text, bound",
    [
        (nested(MAX_WEIGHTED_DEPTH + 1), "8 deep"),
        ("(" * 400, "8 deep"),
        ("a (" * 100, "8 deep"),
        ("x" * (MAX_WEIGHTED_LENGTH + 1), "512 characters"),
    ],
)
def test_a_prompt_that_parses_slowly_is_refused(field: str, text: str, bound: str) -> None:
    """The error names the field and the bound, and quotes nothing."""
    value = [text] if field == "prompt_tags" else text
    with pytest.raises(InvalidMessage, match=f"{field} is .*{bound}") as refusal:
        check_job(WEIGHTED | {field: value})
    assert text[:20] not in str(refusal.value)
    check_job(FIELDS | {field: value})  # literal text is not parsed


def test_the_bounds_are_of_the_joined_tags() -> None:
    """Many short tags are one text."""
    with pytest.raises(InvalidMessage, match="512 characters"):
        check_job(WEIGHTED | {"prompt_tags": ["rose"] * 103})
    with pytest.raises(InvalidMessage, match="8 deep"):
        check_job(WEIGHTED | {"prompt_tags": ["("] * 9})
    check_job(WEIGHTED | {"prompt_tags": [r"\(rose"] * 64, "negative_prompt": nested(8)})


def encoded(engine: Engine, text: str) -> str:
    """What becomes of a prompt: ``ok``, or its error; fails if it takes too long."""
    try:
        job = check_job(WEIGHTED | {"prompt_tags": [text]})
    except InvalidMessage:
        return "refused"
    began = time.process_time()
    try:
        encode_prompt(engine.pipeline, job)
    except InvalidMessage as error:
        assert error.__suppress_context__ and text not in str(error)
        return str(error)
    finally:
        assert time.process_time() - began < SECONDS, ascii(text)
    return "ok"


@pytest.mark.parametrize(
    "text",
    [
        nested(MAX_WEIGHTED_DEPTH),
        "(" * MAX_WEIGHTED_DEPTH + "rose",
        *map(filled, ("()", "((a)) ", "(a)1.2 ", "[", '"', '"a"+ ', '("a", "b").and() ')),
        *map(filled, ("+", "-", "a+", ",", ".", "\\", '\\"', "a.swap(b) ", "withLora(a,1) ", "1")),
        "(" * 7 + filled("a b ")[:400] + ")" * 7,
        '"' + "(" * 7 + filled("a b ")[:400] + ")" * 7 + '"',
        "(" + ", ".join(['"a"'] * 90) + ").blend(" + ",".join(["1"] * 20) + ")",
    ],
)
def test_every_accepted_prompt_parses_fast(engine: Engine, text: str) -> None:
    """Of the greatest length and depth, in every form that compel knows."""
    encoded(engine, text)


ATOMS = [
    "(",
    ")",
    '"',
    "\\",
    "+",
    "-",
    ",",
    ".",
    "[",
    "a",
    "1.1",
    ".and()",
    ".blend(1)",
    ".swap(",
    " ",
]


@examples(25)
@given(unit=st.lists(st.sampled_from(ATOMS), min_size=1, max_size=6).map("".join))
def test_every_repetition_parses_fast(engine: Engine, unit: str) -> None:
    """Whatever is repeated up to the greatest length: an error is the message's."""
    encoded(engine, filled(unit))


@pytest.mark.parametrize(
    "text", ['("WORD", "b").blend(1)', '("WORD", "b").and(1,2,3)', "(WORD).attend(x)", "a.swap("]
)
def test_what_compel_refuses_is_the_messages_fault(engine: Engine, text: str) -> None:
    """Its own texts quote the prompt; ours don't."""
    assert "WORD" not in encoded(engine, text)


def test_blend_without_its_weights_quotes_no_prompt(engine: Engine) -> None:
    """The one that printed the customer's words."""
    job = check_job(WEIGHTED | {"prompt_tags": ['("WORD", "b").blend(1)']})
    with pytest.raises(InvalidMessage, match="prompt_syntax") as refusal:
        encode_prompt(engine.pipeline, job)
    assert refusal.value.__suppress_context__ and "WORD" not in str(refusal.value)


# Messages


@pytest.mark.parametrize("ratio", ["1" * 10_000_000, "\ud800", "1:1\n", "\x00"])
def test_an_aspect_ratio_is_a_short_text(ratio: str) -> None:
    """It goes into a log, a label and a digest."""
    with pytest.raises(InvalidMessage, match="^aspect_ratio: ") as refusal:
        check_job(FIELDS | {"aspect_ratio": ratio})
    assert len(str(refusal.value)) < 200
    assert check_job(FIELDS | {"aspect_ratio": "16:9"}).resolution == (512, 512)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["compel", "(" * 9, "\ud800", "1:2", 10**400]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["url", "position", "x"]), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(GenerationJob.model_fields)


@examples(300)
@given(changes=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_fields_are_a_job_or_one_error(changes: dict[str, Any]) -> None:
    """Whatever a field holds."""
    body = json.dumps(FIELDS | changes).encode()
    try:
        job = parse_job(body)
    except InvalidMessage as error:
        assert len(str(error)) < 4000
    else:
        job.model_dump_json()
        if job.prompt_syntax:
            check_weighted(job.prompt)


@examples(200)
@given(start=st.integers(0, 200), length=st.integers(0, 20), patch=st.binary(max_size=20))
def test_any_bytes_are_a_job_or_one_error(start: int, length: int, patch: bytes) -> None:
    """A good message with a few of its bytes exchanged."""
    body = json.dumps(FIELDS).encode()
    try:
        parse_job(body[:start] + patch + body[start + length :])
    except InvalidMessage:
        pass


# LoRA files


@pytest.fixture(name="lora", scope="session")
def _lora(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file."""
    path = tmp_path_factory.mktemp("hostile") / "good.safetensors"
    return write_diffusers(path, engine.pipeline, 1, seed=1)


@pytest.mark.parametrize(
    "settings",
    [
        '{"unet.lora_alpha": 1%s}' % ("0" * 400),
        '{"unet.lora_alpha": 1e999}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.alpha_pattern": {"to_q": -Infinity}}',
        '{"unet.lora_alpha": %s}' % ("[" * 100_000),
    ],
    ids=["400 digits", "1e999", "NaN", "-Infinity", "deep"],
)
def test_an_alpha_that_is_no_strength(engine: Engine, lora: Path, settings: str) -> None:
    """Read from the file's metadata."""
    path = lora.with_name("alpha.safetensors")
    save_file(load_file(lora), path, {"lora_adapter_metadata": settings})
    with pytest.raises(LoraInvalid):
        read_adapter(path, engine.pipeline)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), 1e30])
def test_an_alpha_beside_the_weights_that_is_no_strength(
    engine: Engine, lora: Path, value: float
) -> None:
    """The same as a tensor."""
    path, tensors = lora.with_name("alpha.safetensors"), load_file(lora)
    layer = sorted(tensors)[0].removesuffix(".lora_A.weight")
    save_file(tensors | {f"{layer}.alpha": torch.tensor(value)}, path)
    with pytest.raises(LoraInvalid):
        read_adapter(path, engine.pipeline)


def test_metadata_are_bounded_before_they_are_read(engine: Engine, lora: Path) -> None:
    """200,000 keys took seconds in a library."""
    path = lora.with_name("metadata.safetensors")
    save_file(load_file(lora), path, {str(number): "" for number in range(1_000)})
    read_adapter(path, engine.pipeline)
    save_file(load_file(lora), path, {str(number): "" for number in range(200_000)})
    began = time.process_time()
    with pytest.raises(LoraInvalid, match="metadata"):
        read_adapter(path, engine.pipeline)
    assert time.process_time() - began < 1


@examples(150)
@given(
    place=st.floats(0, 1),
    length=st.integers(0, 12),
    patch=st.binary(max_size=12),
    cut=st.booleans(),
)
def test_any_lora_file_is_one_or_an_error(
    engine: Engine, lora: Path, place: float, length: int, patch: bytes, cut: bool
) -> None:
    """A good file with a few bytes of its header exchanged, and perhaps cut off there."""
    body, path = lora.read_bytes(), lora.with_name("mutant.safetensors")
    start = int(place * (8 + struct.unpack("<Q", body[:8])[0]))
    path.write_bytes(body[:start] + patch + (b"" if cut else body[start + length :]))
    try:
        read_adapter(path, engine.pipeline)
    except LoraInvalid:
        pass


# Signatures


def png(mode: str, **options: Any) -> bytes:
    """A small drawn signature."""
    image = Image.new("RGBA", (32, 16))
    image.paste((20, 20, 60, 255), (4, 4, 28, 12))
    buffer = io.BytesIO()
    (image.convert(mode) if mode != "RGBA" else image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def parts(data: bytes) -> list[tuple[bytes, bytes]]:
    """A PNG's chunks: kind and content."""
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    return found


def joined(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, with right checksums."""
    body = b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def raw_png(colour_type: int, depth: int, ground: int, ink: int, *, key: bool) -> bytes:
    """Ink on a ground of each kind that PNG knows (its specification, 11.2.2), by its samples.

    Args:
        colour_type: 0 grey, 2 colours, 3 a palette, 4 grey and alpha, 6 colours and alpha.
        depth: Bits of a sample.
        ground: Sample of the ground; transparent where there is an alpha.
        ink: Sample of the ink.
        key: Whether the ground's sample is named as the transparent one.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    samples = np.full((16, 32, channels), ground)
    samples[4:12, 4:28] = ink
    if colour_type in (4, 6):
        samples[..., -1] = 0
        samples[4:12, 4:28, -1] = 2**depth - 1
    bits = samples.reshape(16, -1, 1) >> np.arange(depth - 1, -1, -1) & 1
    rows = np.packbits(bits.reshape(16, -1).astype(np.uint8), axis=1)
    extra = [(b"PLTE", bytes(range(6)))] if colour_type == 3 else []
    if key:
        extra += [(b"tRNS", b"\0" if colour_type == 3 else struct.pack(">H", ground) * channels)]
    header = struct.pack(">IIBBBBB", 32, 16, depth, colour_type, 0, 0, 0)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    return joined([(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")])


KINDS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
EACH_KIND = [(colour_type, depth) for colour_type, depths in KINDS.items() for depth in depths]
GOOD = [
    *(raw_png(*kind, 0, 1, key=kind[0] in (0, 2, 3)) for kind in EACH_KIND),
    png("RGBA"),
    png("P", transparency=0),
    png("LA"),
    png("RGBA", icc_profile=bytes(64)),
    png("RGBA", save_all=True, append_images=[Image.new("RGBA", (32, 16))]),
]
EXTRA = [
    (b"iCCP", b"x\0\0!!"),
    (b"PLTE", b"\0"),
    (b"tRNS", b""),
    (b"acTL", bytes(8)),
    (b"pHYs", b""),
]


def read_or_refused(data: bytes) -> None:
    """Nothing else may come of it."""
    try:
        read_signature_image(data)
    except SignatureUnrenderable:
        pass


@pytest.mark.parametrize("colour_type, depth", EACH_KIND)
def test_each_kind_of_png_is_read_right_or_refused(colour_type: int, depth: int) -> None:
    """By its bits, palette, alpha or one transparent colour: the ink, and nothing else."""
    top = 2**depth - 1
    pairs = {(0, top), (top, 0), (top // 3, 2 * top // 3)} - {(0, 0)}
    for ground, ink in pairs if colour_type != 3 else {(0, 1)}:
        has_alpha = colour_type in (4, 6)
        signature = read_signature_image(
            raw_png(colour_type, depth, ground, ink, key=not has_alpha)
        )
        shade = 255 * ink // top if colour_type != 3 else 4
        ((count, pixel),) = signature.getcolors()
        assert (signature.size, count, pixel[3]) == ((24, 8), 24 * 8, 255)
        assert abs(pixel[1] - shade) <= 1
        if not has_alpha:
            with pytest.raises(SignatureUnrenderable, match="transparent ground"):
                read_signature_image(raw_png(colour_type, depth, ground, ink, key=False))


@pytest.mark.parametrize("colour_type", [0, 2])
def test_one_transparent_colour_of_16_bits_makes_no_other_transparent(colour_type: int) -> None:
    """Not the one whose high byte is its low byte."""
    signature = read_signature_image(raw_png(colour_type, 16, 0x1234, 0x3412, key=True))
    assert signature.size == (24, 8)
    with pytest.raises(SignatureUnrenderable):  # alike in the eight bits that are shown
        read_signature_image(raw_png(colour_type, 16, 0x12FF, 0x12FE, key=True))


@pytest.mark.parametrize("size", [0, 1, 2, 4, 767])
def test_a_broken_palette(size: int) -> None:
    """Of no colours, or of a part of one."""
    chunks = [(k, c[:size] if k == b"PLTE" else c) for k, c in parts(png("P", transparency=0))]
    read_or_refused(joined(chunks))


@pytest.mark.parametrize(
    ("sides", "named"),
    [
        ((100_000, 100_000), "not a PNG"),
        ((4097, 1), "over 4096 pixels"),
        ((0, 0), "not a PNG"),
        ((2**31, 1), "not a PNG"),
    ],
)
def test_a_bomb(sides: tuple[int, int], named: str) -> None:
    """Its size is looked at before its pixels."""
    header = struct.pack(">II", *sides) + parts(png("RGBA"))[0][1][8:]
    with pytest.raises(SignatureUnrenderable, match=named):
        read_signature_image(joined([(b"IHDR", header), *parts(png("RGBA"))[1:]]))


@examples(400)
@given(data=st.data(), good=st.sampled_from(GOOD))
def test_any_png_is_a_signature_or_an_error(data: st.DataObject, good: bytes) -> None:
    """A good one with a chunk changed, taken out or put in; checksums are right."""
    chunks = parts(good)
    place = data.draw(st.integers(0, len(chunks) - 1))
    kind, content = chunks[place]
    start = data.draw(st.integers(0, len(content)))
    patch = data.draw(st.binary(max_size=4))
    changed = content[:start] + patch + content[start + data.draw(st.integers(0, 4)) :]
    extra = data.draw(st.lists(st.sampled_from(EXTRA), max_size=1))
    body = joined([*chunks[:place], *extra, (kind, changed), *chunks[place + 1 :]])
    read_or_refused(
        body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    )


@pytest.mark.parametrize("alpha, opacity", [(1, 255), (255, 0)])
def test_a_signature_that_nobody_sees_is_refused(alpha: int, opacity: int) -> None:
    """Too faint itself, or made so."""
    signature = Image.new("RGBA", (32, 16), (0, 0, 0, alpha))
    with pytest.raises(SignatureUnrenderable):
        add_signature_image(Image.new("RGB", (512, 512)), signature, opacity=opacity)


def test_ink_that_vanishes_when_it_is_scaled_is_refused() -> None:
    """Two dots in the corners of a large picture."""
    signature = Image.new("RGBA", (4096, 4096))
    for place in ((0, 0), (4095, 4095)):
        signature.putpixel(place, (0, 0, 0, 255))
    with pytest.raises(SignatureUnrenderable):
        add_signature_image(Image.new("RGB", (512, 512)), signature)


@pytest.mark.parametrize(
    "name, drawn",
    [("김하늘♥\ufe0f", "김하늘♥"), ("葛\U000e0100", "葛"), ("So\u00adphie", "Sophie")],
)
def test_a_letter_with_a_selector_is_drawn_as_the_letter(name: str, drawn: str) -> None:
    """No font need know the selector."""
    assert normalise_name(name) == drawn
    try:
        expected = create_text_overlay(drawn)
    except SignatureUnrenderable:  # no font here has the letter itself
        return
    assert create_text_overlay(name) == expected
