"""The pocket model, its drawings and its judge, as an installed package shows them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylegen.job import RESOLUTIONS
from stylegen.pocket import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STYLES,
    UNCLEAR,
    WORDS,
    Judgement,
    Scene,
    build_lora,
    build_pocket,
    caption,
    draw,
    judge,
    make_tokenizer,
    paint,
)


@pytest.fixture(scope="module", name="base")
def _base(pocket: Path) -> Path:
    return pocket / "pocket"


def _generate(
    folder: Path, lora: Path | None = None, scheduler: str = "", **size: int
) -> np.ndarray:
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    name = scheduler or "DPMSolverMultistepScheduler"
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    generator = torch.Generator().manual_seed(7)
    made = pipeline("red heart", num_inference_steps=3, generator=generator, **size)
    return np.asarray(made.images[0])


@pytest.mark.parametrize("size", [(512, 512), (768, 768), (512, 1024)])
@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_stock_pipeline_draws_every_format(
    base: Path, size: tuple[int, int], scheduler: str
) -> None:
    """`from_pretrained` finds the scale of 32 by itself, with both schedulers."""
    pixels = _generate(base, scheduler=scheduler, width=size[0], height=size[1])
    assert pixels.shape == (size[1], size[0], 3)


def test_random_lora_changes_the_picture(base: Path, tmp_path: Path) -> None:
    """The seeded artist has an effect, and each seed another one."""
    artists = [build_lora(tmp_path / f"{seed}.safetensors", base, seed=seed) for seed in (1, 2)]
    plain, *styled = (_generate(base, lora) for lora in (None, *artists))
    assert np.abs(plain.astype(int) - styled[0]).mean() > 1
    assert np.abs(styled[0].astype(int) - styled[1]).mean() > 1


def test_same_seed_same_weights(tmp_path: Path) -> None:
    """One seed gives one model, to the byte."""
    base, again = (build_pocket(tmp_path / name) for name in ("first", "again"))
    for part in ("unet", "vae", "text_encoder"):
        first, second = (sorted((f / part).glob("*.safetensors"))[0] for f in (base, again))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("text", ["빨간 하트", "zebra ünder ☂", "a_b-c!", "🎨"])
def test_every_text_has_tokens(tmp_path: Path, text: str) -> None:
    """No text falls back to the unknown token, which would end the prompt early."""
    tokenizer = make_tokenizer(tmp_path)
    inner = tokenizer(text).input_ids[1:-1]
    assert inner and tokenizer.eos_token_id not in inner
    assert max(inner) < len(tokenizer)


def test_every_word_is_one_token(tmp_path: Path) -> None:
    """The drawings' words, and all that captions say, are single tokens."""
    tokenizer = make_tokenizer(tmp_path)
    assert {len(tokenizer(word).input_ids) for word in WORDS} == {3}
    assert {*SHAPES, *COLOURS, *BACKGROUNDS} <= set(WORDS)
    rng = np.random.default_rng(0)
    for _ in range(200):
        prompt = " ".join(caption(Scene.random(rng), rng))
        assert len(tokenizer(prompt).input_ids) == len(prompt.split()) + 2


def test_captions_name_the_scene() -> None:
    """Colour and shape are always said, the ground nearly always, nothing is made up."""
    rng, grounds = np.random.default_rng(0), 0
    for _ in range(500):
        scene = Scene.random(rng)
        words = " ".join(caption(scene, rng)).split()
        assert {scene.colour, scene.shape} <= set(words)
        known = {scene.shape, scene.colour, scene.background, "background", scene.size, scene.place}
        assert set(words) <= known
        grounds += "background" in words
    assert 440 < grounds < 480


def test_window_is_cut_from_the_whole() -> None:
    """A painted window equals the same window of the whole picture, in every style."""
    scene = Scene("star", "pink", "blue", "large", "left", 11)
    for style in (None, *STYLES):
        whole = paint(scene, 512, 1024, style)
        part = paint(scene, 512, 1024, style, (48, 315, 320, 512))
        assert np.array_equal(whole[315:512, 48:320], part)


@pytest.mark.parametrize("style", [None, *STYLES])
def test_judge_is_right_about_true_drawings(style: str | None) -> None:
    """At least 99 of 100 fresh drawings, in every respect and format."""
    rng, right, square = np.random.default_rng(2026), 0, RESOLUTIONS["1:1"]
    sizes = [square] * 6 + [RESOLUTIONS["2:2"], RESOLUTIONS["1:2"]]
    for i in range(100):
        scene, size = Scene.random(rng), sizes[i % len(sizes)]
        truth = Judgement(scene.shape, scene.colour, scene.background, style or "plain")
        right += judge(draw(scene, *size, style)) == truth
    assert right >= 99


def test_judge_survives_jpeg_and_small_noise(tmp_path: Path) -> None:
    """What a customer receives is a JPEG; the judge sees the same in it."""
    rng = np.random.default_rng(5)
    for style in (None, *STYLES):
        scene = Scene.random(rng)
        noisy = np.float32(draw(scene, 512, 512, style)) + rng.normal(0, 6, (512, 512, 3))
        Image.fromarray(np.uint8(noisy.clip(0, 255))).save(tmp_path / "a.jpg", quality=90)
        truth = Judgement(scene.shape, scene.colour, scene.background, style or "plain")
        assert judge(Image.open(tmp_path / "a.jpg")) == truth


def test_judge_finds_nothing_in_nothing() -> None:
    """Noise and an empty ground are unclear, not some nearest answer."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    assert judge(noise).style == judge(noise).background == UNCLEAR
    empty = judge(Image.new("RGB", (512, 512), BACKGROUNDS["white"]))
    assert (empty.shape, empty.colour, empty.background) == (UNCLEAR, UNCLEAR, "white")


def test_command_needs_one_folder() -> None:
    """Without a folder the command says how it is used."""
    command = [sys.executable, "-m", "stylegen.pocket"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "usage" in ran.stderr


def test_help_makes_no_folder(tmp_path: Path) -> None:
    """Whoever asks how a command is used has not asked for a folder of that name."""
    root = Path(__file__).parent.parent
    commands = (["-m", "stylegen.pocket"], [root / "tools/demo.py"], [root / "bench/sd15.py"])
    for command in commands:
        asked = [sys.executable, *command, "--help"]
        path = {"PYTHONPATH": f"{root}:{root / 'bench'}", "PATH": ""}
        ran = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path, env=path)
        assert ran.returncode == 0 and "usage" in ran.stdout, ran.stderr
    assert not list(tmp_path.iterdir())


def test_module_is_cheap_to_import() -> None:
    """Drawings and judge need neither torch nor diffusers."""
    code = "import sys, stylegen.pocket; print({'torch', 'diffusers'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
