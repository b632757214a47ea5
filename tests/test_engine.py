"""The batch engine against stock diffusers: the same pictures, and nobody's style in another's."""

import copy
import fcntl
import gc
import hashlib
import logging
import math
import os
import random
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, cycle, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import DEFAULT, Mock, patch

import numpy as np
import psutil
import pytest
import torch
from accelerate import cpu_offload
from lora_files import SPELLINGS, UNET, updates, write_diffusers, write_kohya, write_rslora
from PIL import Image
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor
from waiting import wait_until

from stylegen.fields import SCHEDULERS
from stylegen.job import DeviceLost, GenerationJob, LoraInvalid, OutOfMemory, check_job
from stylegen.pipeline import load_pipeline, loop, trajectory
from stylegen.pipeline.adapter import Adapter, mix_adapters, on_device, read_adapter
from stylegen.pipeline.batch import take_steps
from stylegen.pipeline.batched_lora import AddedLora, MergedLora
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.prompt import encode_prompt
from stylegen.pipeline.schedulers import make_scheduler
from stylegen.pipeline.task import Task, ignore, model_input
from stylegen.pipeline.warm_up import warm_up
from stylegen.pocket import STYLES, packaged

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from sd15 import TINY, make_pipeline  # noqa: E402  pylint: disable=wrong-import-position

Order = dict[str, Any]


@pytest.fixture(scope="module", name="loras")
def _loras(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> list[Path]:
    """Four artists: ranks 4, 8 and 16, one in kohya's dialect, one with text-encoder layers."""
    folder, pipeline = tmp_path_factory.mktemp("loras"), engine.pipeline
    return [
        write_diffusers(folder / "rank4.safetensors", pipeline, 4, seed=1),
        write_kohya(folder / "kohya.safetensors", pipeline, 8, seed=2, alpha=4.0),
        write_diffusers(folder / "rank16.safetensors", pipeline, 16, seed=3),
        write_diffusers(folder / "text.safetensors", pipeline, 8, seed=4, text=True),
    ]


@pytest.fixture(scope="module", name="jobs")
def _jobs() -> list[GenerationJob]:
    """Four jobs that differ in all that a job may differ in, but for size."""
    common = {
        "generation_id": 1,
        "lora_model_url": "s3://models/k.safetensors",
        "artist_name": "Zoë",
        "webhook_url": "http://localhost",
        "num_inference_steps": 5,
    }
    own: list[Order] = [
        {"style_id": 0, "prompt_tags": ["red", "heart"], "seed": 0},
        {"style_id": 1, "prompt_tags": ["blue", "star"], "seed": 1, "scheduler": "euler"},
        {"style_id": 2, "prompt_tags": ["green"], "seed": 2, "guidance_scale": 3.0},
        {"style_id": 3, "prompt_tags": ["pink", "circle"], "seed": 3, "negative_prompt": "white"},
    ]
    return [check_job(common | fields) for fields in own]


def together(
    engine: Engine, jobs: Sequence[GenerationJob], loras: Sequence[Path], **options: Any
) -> list[torch.Tensor]:
    """Final latents of jobs that were all in one batch from the first step to the last."""
    return [latents for latents, _ in drawn_together(engine, jobs, loras, **options)]


def drawn_together(
    engine: Engine, jobs: Sequence[GenerationJob], loras: Sequence[Path], **options: Any
) -> list[tuple[torch.Tensor, Any]]:
    """The same, with their pictures."""
    latents: dict[int, torch.Tensor] = {}
    everyone = threading.Barrier(len(jobs) + 1)

    def one(number: int) -> Any:
        def keep(_: int, value: torch.Tensor) -> None:
            latents[number] = value.clone()

        everyone.wait()
        return engine.draw(jobs[number], loras[number], on_latents=keep, **options)

    with ThreadPoolExecutor(len(jobs)) as pool, paused(engine, len(jobs), everyone):
        pictures = list(pool.map(one, range(len(jobs))))
    return [(latents[number], picture) for number, picture in enumerate(pictures)]


@contextmanager
def paused(engine: Engine, count: int, everyone: threading.Barrier) -> Iterator[None]:
    """Hold the engine's thread back until `count` jobs wait; in the end, that they met."""
    line, admit, widths = engine.loop.line, loop.admit, []

    def patient(*given: Any) -> None:
        if not widths:
            with line.changed:
                line.changed.wait_for(lambda: len(line.tasks) >= count, 60)
        admit(*given)
        if not widths:
            widths.append(len(engine.loop.active.tasks))

    threading.Thread(target=everyone.wait, daemon=True).start()
    with patch("stylegen.pipeline.loop.admit", patient):
        yield
    assert widths[0] == count, "they were not one batch"


def stock(
    engine: Engine, job: GenerationJob, loras: Sequence[Path], scales: Sequence[float]
) -> Any:
    """Latents and picture by diffusers alone, with its own LoRA loader."""
    pipeline = load_pipeline(engine.pipeline.name_or_path, device="cpu")
    names = [f"a{i}" for i in range(len(loras))]
    for name, path in zip(names, loras, strict=True):
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    pipeline.set_adapters(names, list(scales))
    pipeline.scheduler = make_scheduler(job.scheduler, pipeline.scheduler.config)
    latents: list[torch.Tensor] = []

    def keep(_: Any, __: int, ___: Any, kept: dict[str, Any]) -> dict[str, Any]:
        latents.append(kept["latents"].clone())
        return kept

    width, height = job.resolution
    picture = pipeline(
        job.prompt,
        negative_prompt=job.negative_prompt,
        width=width,
        height=height,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=float(job.guidance_scale),
        generator=torch.Generator().manual_seed(job.seed),
        callback_on_step_end=keep,
    ).images[0]
    return latents[-1], np.int16(picture)


@pytest.mark.parametrize(
    ("options", "rounding"),
    [({}, 0), ({"merge_loras": True}, 0), ({"compile_backend": "eager"}, 1e-3)],
    ids=["plain", "merged", "compiled"],
)
def test_an_engine_leaves_its_pipeline_as_it_was(
    pocket: Path,
    jobs: list[GenerationJob],
    tmp_path: Path,
    options: dict[str, Any],
    rounding: float,
) -> None:
    """One at a time; closed, it is stock diffusers again, bit for bit, and may have another.

    But for the order of a compiled UNet's numbers in memory, which stays, and another rounding.
    A small model is compiled, since that takes a minute otherwise.
    """

    def stock_pictures(pipeline: Any) -> np.ndarray:
        drawn = pipeline(
            ["blue star"] * 4,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        return np.asarray(drawn.images)

    if "compile_backend" in options:
        pipeline = make_pipeline(TINY, "cpu", torch.float32)
    else:
        pipeline = load_pipeline(str(pocket / "pocket"), device="cpu")
    before, scheduler = stock_pictures(pipeline), pipeline.scheduler
    lora = write_diffusers(tmp_path / "lora.safetensors", pipeline, 4, seed=1, text=True)
    first = Engine(pipeline, **options)
    with pytest.raises(ValueError, match="has an engine already"):
        Engine(pipeline)
    drawn = np.asarray(first.draw(jobs[0], lora))
    first.close()
    assert pipeline.scheduler is scheduler
    assert np.abs(stock_pictures(pipeline) - before).max() <= rounding
    second = Engine(pipeline, **options)
    assert np.array_equal(drawn, np.asarray(second.draw(jobs[0], lora)))
    second.close()
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


@pytest.mark.parametrize("merged", [False, True])
def test_mixed_batch_is_stock_diffusers(
    pocket: Path, jobs: list[GenerationJob], merged: bool
) -> None:
    """Four artists in one batch: latents within 1e-4 of four stock runs, pictures within 1/255.

    Here Euler begins at 4096 times noise, of which stock itself rounds more than that away.

    They are the packaged ones, with ranks of 4, 8 (in kohya's dialect), 16 and 8 (with layers of
    the text encoder): layers of random weights make more of a rounding than trained ones do.
    """
    pipeline = load_pipeline(str(pocket / "pocket"), device="cpu")
    engine = Engine(pipeline, merge_loras=merged)
    loras = [packaged() / f"pocket-loras/{style}.safetensors" for style in STYLES]
    assert {engine.adapters.get(lora).rank for lora in loras} == {4, 8, 16}
    before = _digest(pipeline)
    drawn = drawn_together(engine, jobs, loras)
    for job, lora, (latents, picture) in zip(jobs, loras, drawn, strict=True):
        expected, stocks = stock(engine, job, [lora], [1.0])
        first = 4 * make_scheduler(job.scheduler, pipeline.scheduler.config).init_noise_sigma
        assert (latents - expected).abs().max() <= max(1e-4, 2**-24 * float(first))
        assert np.abs(np.int16(picture) - stocks).max() <= 1
    assert _digest(pipeline) == before
    engine.close()


@pytest.mark.parametrize("aspect", ["2:2", "1:2"])
def test_other_sizes(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], aspect: str
) -> None:
    """The same at the other two resolutions."""
    job = jobs[0].model_copy(update={"aspect_ratio": aspect, "num_inference_steps": 3})
    picture = stock(engine, job, loras[:1], [1.0])[1]
    assert np.abs(np.int16(engine.draw(job, loras[0])) - picture).max() <= 1


def test_neighbours_and_place_do_not_matter(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """In batches of the same width a job's latents are the same bits, wherever it is."""
    first = together(engine, jobs, loras)
    order = [2, 0, 3, 1]
    shuffled = together(engine, [jobs[i] for i in order], [loras[i] for i in order])
    again = together(engine, [jobs[0], *[jobs[1]] * 3], [loras[0], *[loras[2]] * 3])
    for place, number in enumerate(order):
        assert torch.equal(shuffled[place], first[number])
    assert torch.equal(again[0], first[0])


def test_one_of_four_is_cancelled(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """The three others are drawn, and equal what they would have been."""
    undisturbed = together(engine, jobs, loras)
    kept: dict[int, torch.Tensor] = {}

    def draw(number: int) -> None:
        def keep(step: int, latents: torch.Tensor) -> None:
            kept[number] = latents.clone()
            if (number, step) == (1, 3):
                raise InterruptedError

        engine.draw(jobs[number], loras[number], on_latents=keep)

    everyone = threading.Barrier(1)
    with ThreadPoolExecutor(4) as pool, paused(engine, 4, everyone):
        futures = [pool.submit(draw, number) for number in range(4)]
        errors = [future.exception() for future in futures]
    assert [type(error) for error in errors] == [type(None), InterruptedError, *[type(None)] * 2]
    for number in (0, 2, 3):
        assert torch.equal(kept[number], undisturbed[number])


def test_a_given_up_place_is_taken(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """A job that waits gets the place of one that was given up, in the middle of a batch."""
    long = [job.model_copy(update={"num_inference_steps": 12}) for job in [*jobs, jobs[0]]]
    widths: list[int] = []
    forward = engine.pipeline.unet.forward

    def counted(latents: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        widths.append(len(latents))
        return forward(latents, *arguments, **options)

    def give_up(step: int) -> None:
        if step == 3:
            raise InterruptedError

    tasks = [
        Task(job, engine.adapters.get(lora), give_up if number == 1 else ignore)
        for number, (job, lora) in enumerate(zip(long, [*loras, loras[0]], strict=True))
    ]
    try:
        engine.pipeline.unet.forward = counted
        engine.loop.add(*tasks)
        errors = [task.result.exception() for task in tasks]
    finally:
        engine.pipeline.unet.forward = forward
    assert [type(error) for error in errors] == [type(None), InterruptedError, *[type(None)] * 3]
    assert widths == [8] * 12 + [2] * 3  # the fifth joined after the third step


def test_a_job_joins_a_running_batch(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """It does not wait for the others' end, and its picture is its own."""
    long, short = jobs[0].model_copy(update={"num_inference_steps": 30}), jobs[1]
    alone = np.int16(engine.draw(short, loras[1]))
    under_way, ends = threading.Event(), []
    line = engine.loop.line

    def on_step(step: int) -> None:
        if step == 3:
            under_way.set()
            with line.changed:
                assert line.changed.wait_for(lambda: line.tasks, 60)
        if step == 29:
            wait_until(lambda: ends)

    def draw(job: GenerationJob, lora: Path, **options: Any) -> Any:
        picture = engine.draw(job, lora, **options)
        ends.append(job.style_id)
        return picture

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(draw, long, loras[0], on_step=on_step)
        assert under_way.wait(60)
        joined = draw(short, loras[1])
        first.result()
    assert ends == [short.style_id, long.style_id]
    assert np.abs(np.int16(joined) - alone).max() <= 1


def test_a_cold_lora_keeps_nobody_waiting(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], tmp_path: Path
) -> None:
    """Who opens its file waits for a lease on it to end; its neighbour is drawn meanwhile."""
    cold = Path(shutil.copy(loras[1], tmp_path))
    alone = np.int16(engine.draw(jobs[1], loras[1]))
    with ThreadPoolExecutor(1) as pool:
        with lease(cold) as is_awaited:
            picture = pool.submit(engine.draw, jobs[1], cold)
            wait_until(is_awaited)
            steps: list[int] = []
            engine.draw(jobs[0], loras[0], on_step=steps.append)
            assert steps == [0, 1, 2, 3, 4, 5] and not picture.done()
        assert np.array_equal(np.int16(picture.result()), alone)


@contextmanager
def lease(path: Path) -> Iterator[Callable[[], bool]]:
    """Let nobody open a file, for 45 s at most; tells whether somebody waits to."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(path, os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield lambda: fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_WRLCK
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


def test_submitted_jobs_are_pictures_to_come(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """Nobody waits for a submitted job; it can be given up, and a wrong LoRA is refused at once."""
    everyone = threading.Event()

    def hold(step: int) -> None:
        if step == 0:
            assert everyone.wait(60)

    first = engine.submit(jobs[0], loras[0], on_step=hold)
    second, third = (engine.submit(job, lora) for job, lora in zip(jobs[1:3], loras[1:3]))
    assert not first.done() and third.cancel()
    with pytest.raises(LoraInvalid):
        engine.submit(jobs[3], __file__)
    everyone.set()
    alone = engine.draw(jobs[1], loras[1])
    assert np.abs(np.int16(second.result()) - np.int16(alone)).max() <= 1
    assert first.result().size == (512, 512)
    with pytest.raises(CancelledError):
        third.result()


def test_a_picture_in_tiles(pocket: Path, jobs: list[GenerationJob], loras: list[Path]) -> None:
    """The setting for small memories draws the same picture; its tiles meet within some levels."""
    job = jobs[0].model_copy(update={"aspect_ratio": "2:2", "num_inference_steps": 8})
    model, pictures = str(pocket / "pocket"), []
    for tiled in (False, True):
        engine = Engine(load_pipeline(model, device="cpu", vae_tiling=tiled), batch=1)
        pictures.append(np.int16(engine.draw(job, loras[0])))
        engine.close()
    apart = np.abs(pictures[0] - pictures[1])
    assert 0 < apart.mean() < 4


def test_scales_and_several_loras(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """0 is stock's UNet bit for bit, and two LoRAs with scales equal diffusers' mixture."""
    base = jobs[0].model_copy(update={"lora_scale": 0.0})
    bare = load_pipeline(engine.pipeline.name_or_path, device="cpu")
    bare.scheduler = make_scheduler(base.scheduler, bare.scheduler.config)
    noise, answers = torch.Generator().manual_seed(base.seed), list[torch.Tensor]()
    for unet in (bare.unet, engine.pipeline.unet):
        hook = unet.register_forward_hook(lambda *given: answers.append(given[2][0]))
        if unet is bare.unet:
            expected = bare(base.prompt, num_inference_steps=5, generator=noise).images[0]
        else:
            drawn = engine.draw(base, loras[0])
        hook.remove()
    assert len(answers) == 10 and torch.equal(answers[0], answers[5])
    assert np.abs(np.int16(drawn) - np.int16(expected)).max() <= 1
    extra = {"url": "s3://models/other.safetensors", "scale": -0.5}
    both = check_job(jobs[0].model_dump() | {"lora_scale": 0.75, "extra_loras": [extra]})
    picture = stock(engine, both, [loras[0], loras[1]], [0.75, -0.5])[1]
    drawn = engine.draw(both, loras[0], extra_loras=[loras[1]])
    assert np.abs(np.int16(drawn) - picture).max() <= 1


@pytest.mark.parametrize("dialect", ["convolutions", "rslora"])
def test_dialects(engine: Engine, jobs: list[GenerationJob], tmp_path: Path, dialect: str) -> None:
    """Convolutions (LoCon's plain form) and rank-stabilised scaling mean what diffusers draws."""
    path, pipeline = tmp_path / "lora.safetensors", engine.pipeline
    if dialect == "rslora":
        write_rslora(path, pipeline, 4, seed=5, alpha=6.0)
    else:
        write_diffusers(path, pipeline, 4, seed=5, convolutions=True)
    picture = stock(engine, jobs[0], [path], [1.0])[1]
    assert np.abs(np.int16(engine.draw(jobs[0], path)) - picture).max() <= 1
    assert engine.adapters.get(path).updates


def test_pefts_own_prefix(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], tmp_path: Path
) -> None:
    """A file that peft's ``save_pretrained`` wrote means the same."""
    path = tmp_path / "peft.safetensors"
    tensors = {
        k.replace("unet.", "base_model.model.", 1): v for k, v in load_file(loras[0]).items()
    }
    save_file(tensors, path)
    path.with_name("adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    assert engine.draw(jobs[0], path).tobytes() == engine.draw(jobs[0], loras[0]).tobytes()


def _same(one: Adapter, other: Adapter) -> bool:
    """Whether two files mean the same, bit for bit."""
    if one.updates.keys() != other.updates.keys():
        return False
    halves = ((one.updates[name], other.updates[name]) for name in one.updates)
    return all(torch.equal(*pair) for both in halves for pair in zip(*both, strict=True))


@pytest.mark.parametrize("dialect", SPELLINGS)
def test_every_dialect_means_the_same(
    engine: Engine, loras: list[Path], tmp_path: Path, dialect: str
) -> None:
    """However names end, no half is taken for the other, and alphas find their layers."""
    plain, respelled = tmp_path / "plain.safetensors", tmp_path / "respelled.safetensors"
    tensors = load_file(loras[3])
    for layer in [name.rpartition(".lora_A")[0] for name in tensors if ".lora_A" in name]:
        tensors[f"{layer}.alpha"] = torch.tensor(4.0)
    save_file(tensors, plain)
    for ours, theirs in SPELLINGS[dialect].items():
        tensors = {name.replace(ours, theirs): value for name, value in tensors.items()}
    save_file(tensors, respelled)
    assert not tensors.keys() & load_file(loras[3]).keys()
    assert _same(engine.adapters.get(respelled), engine.adapters.get(plain))


@pytest.mark.parametrize("ending", [".alpha", ".lora.alpha", "_lora.alpha"])
def test_an_alpha_counts_however_it_is_spelled(
    engine: Engine, loras: list[Path], tmp_path: Path, ending: str
) -> None:
    """An alpha of half the rank beside plain names means what kohya's does."""
    path = write_diffusers(tmp_path / "plain.safetensors", engine.pipeline, 8, seed=2)
    assert not _same(engine.adapters.get(path), engine.adapters.get(loras[1]))
    tensors = load_file(path)
    layers = [name.rpartition(".lora_A")[0] for name in tensors if ".lora_A" in name]
    alphas = {f"{layer}{ending}": torch.tensor(4.0) for layer in layers}
    save_file(tensors | alphas, tmp_path / "alphas.safetensors")
    told = engine.adapters.get(tmp_path / "alphas.safetensors")
    assert _same(told, engine.adapters.get(loras[1]))


def test_an_alpha_counts_where_others_have_none(engine: Engine, tmp_path: Path) -> None:
    """Layers without an alpha change nothing about those with one, in kohya's text encoder."""
    name, pipeline = ("q_proj", "fc1"), engine.pipeline
    path = write_kohya(
        tmp_path / "some.safetensors", pipeline, 8, 2, 4.0, text=True, with_alpha=name
    )
    some = engine.adapters.get(path)
    path = write_diffusers(tmp_path / "none.safetensors", pipeline, 8, seed=2, text=True)
    for layer, (down, _) in engine.adapters.get(path).updates.items():
        factor = math.sqrt(0.5) if layer.endswith(name) else 1.0
        assert torch.equal(some.updates[layer][0], down * factor), layer


def test_single_pixels_may_be_matrices(engine: Engine, loras: list[Path], tmp_path: Path) -> None:
    """Linear layers as convolutions of single pixels, and the other way round."""
    tensors = load_file(loras[0])
    turned = {
        name: half.flatten(1) if half.ndim == 4 else half[..., None, None]
        for name, half in tensors.items()
    }
    assert {half.ndim for half in tensors.values()} == {2, 4}
    save_file(turned, tmp_path / "turned.safetensors")
    assert _same(
        engine.adapters.get(tmp_path / "turned.safetensors"), engine.adapters.get(loras[0])
    )


def test_a_layer_of_two_names_is_one_layer(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], tmp_path: Path
) -> None:
    """Older files say `text_model.encoder`, newer ones `encoder`; no update is ever added twice."""
    newer = write_diffusers(tmp_path / "newer.safetensors", engine.pipeline, 4, seed=9, text=True)
    tensors = load_file(newer)
    old = {
        k.replace("text_encoder.encoder.", "text_encoder.text_model.encoder."): v
        for k, v in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "older.safetensors")
    first = engine.draw(jobs[0], newer).tobytes()
    assert engine.draw(jobs[0], tmp_path / "older.safetensors").tobytes() == first
    assert engine.draw(jobs[0], newer).tobytes() == first
    both = {name: value.clone() for name, value in (old | tensors).items()}
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(LoraInvalid):
        engine.draw(jobs[0], tmp_path / "both.safetensors")


@pytest.mark.parametrize(
    ("more", "metadata"),
    [
        ({"lora_unet_no_such_layer.alpha": torch.tensor(4.0)}, {}),
        ({"{}.alpha": torch.ones(2)}, {}),
        ({"{}.alpha": torch.tensor(torch.nan)}, {}),
        ({}, {"lora_adapter_metadata": "[1]"}),
        ({}, {"lora_adapter_metadata": "{"}),
        ({}, {"lora_adapter_metadata": '{"unet.lora_alpha": "much"}'}),
        ({}, {"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'}),
        ({}, {"lora_adapter_metadata": '{"unet.lora_alpha": 1e30}'}),
        ({}, {"lora_adapter_metadata": '{"unet.alpha_pattern": [1]}'}),
    ],
)
def test_nonsense_beside_the_weights_is_refused(
    engine: Engine,
    loras: list[Path],
    tmp_path: Path,
    more: dict[str, torch.Tensor],
    metadata: dict[str, str],
) -> None:
    """Alphas and metadata that mean nothing are the file's fault, and called so."""
    tensors = load_file(loras[0])
    layer = next(iter(tensors)).rpartition(".lora_")[0]
    named = {name.format(layer): value for name, value in more.items()}
    save_file(tensors | named, tmp_path / "odd.safetensors", metadata)
    with pytest.raises(LoraInvalid):
        engine.adapters.get(tmp_path / "odd.safetensors")


@torch.no_grad()
def test_rows_half_written_are_written_again(
    pocket: Path, engine: Engine, loras: list[Path], monkeypatch: Any
) -> None:
    """When memory is short in the middle of a change, nobody's old style is taken for shown."""
    unet = load_pipeline(str(pocket / "pocket"), device="cpu").unet
    rows, sample = MergedLora(unet, "unet", "cpu", 1), torch.randn(1, 16, 16, 16)
    words = torch.randn(1, 77, unet.config.cross_attention_dim)
    adapters = [engine.adapters.get(lora) for lora in loras[:2]]
    expected = []
    for adapter in adapters:
        rows.put([adapter])
        expected.append(unet(sample, 500, words).sample)
    for number, adapter in enumerate(adapters):  # who was there, then who was to come
        rows.put([adapters[0]])
        with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
            patched.setattr("torch.addmm", _raise_out_of_memory)
            rows.put([adapters[1]])
        rows.put([adapter])
        assert torch.equal(unet(sample, 500, words).sample, expected[number])


def _raise_out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("change", ["stranger", "size", "dora", "loha"])
def test_what_does_not_fit_is_refused(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], tmp_path: Path, change: str
) -> None:
    """Never silently ignored, and the next picture is as before."""
    before = engine.draw(jobs[0], loras[0]).tobytes()
    tensors, name = load_file(loras[0]), next(iter(load_file(loras[0]))).rpartition(".lora_")[0]
    changes = {
        "stranger": {f"unet.no.such.lora_{half}.weight": torch.ones(4, 4) for half in "AB"},
        "size": {f"{name}.lora_A.weight": torch.ones(4, 7)},
        "dora": {f"{name}.lora_magnitude_vector": torch.ones(4)},
        "loha": {f"{name}.hada_w1_a": torch.ones(4, 4)},
    }
    save_file(tensors | changes[change], tmp_path / "bad.safetensors")
    with pytest.raises(LoraInvalid):
        engine.draw(jobs[0], tmp_path / "bad.safetensors")
    assert engine.draw(jobs[0], loras[0]).tobytes() == before


def _full_rank(path: Path, engine: Engine) -> Path:
    """One layer of full rank, 64."""
    name, *_ = (n for n, _ in engine.pipeline.unet.named_modules() if n.endswith("attn1.to_q"))
    pair = updates(engine.pipeline.unet, (name,), 64, seed=5, size=0.05)[name]
    save_file({f"unet.{name}.lora_{half}.weight": v for half, v in zip("AB", pair)}, path)
    return path


def test_five_of_full_rank_are_refused_alone(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], tmp_path: Path
) -> None:
    """In the middle of their neighbours' pictures, which are the same to the last bit."""
    deep = _full_rank(tmp_path / "deep.safetensors", engine)
    extras = [{"url": "s3://models/deep.safetensors", "scale": 1.0}] * 4
    greedy = check_job(jobs[0].model_dump() | {"extra_loras": extras})
    tasks, refused = _tasks(engine, jobs[:2], loras[:2]), list[int]()
    undisturbed = together(engine, jobs[:2], loras[:2])

    def ask(step: int) -> None:
        if step == 2:
            with pytest.raises(LoraInvalid, match="rank 320, over 256"):
                engine.submit(greedy, deep, extra_loras=[deep] * 4)
            refused.append(step)

    tasks[0].on_step = ask
    _drawn(engine, *tasks)
    assert refused
    for task, expected in zip(tasks, undisturbed, strict=True):
        assert torch.equal(task.latents, expected)


def _digest(pipeline: Any) -> str:
    digest = hashlib.sha256()
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        for name, weight in sorted(model.state_dict().items()):
            digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()


class _Enlarger(torch.nn.Module):
    """In place of an autoencoder, where pictures need not be looked at: latents, enlarged."""

    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        """The first three channels, 32 times as large."""
        return (torch.nn.functional.interpolate(latents[:, :3], scale_factor=32),)


def test_two_hundred_jobs_leave_no_trace(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last picture equals the first of the same job; weights untouched; memory flat."""
    digest = _digest(engine.pipeline)
    with monkeypatch.context() as patched:
        patched.setattr(engine.pipeline, "vae", _Enlarger())
        _draw_two_hundred(engine, jobs, loras)
    assert _digest(engine.pipeline) == digest


def _draw_two_hundred(engine: Engine, jobs: list[GenerationJob], loras: list[Path]) -> None:
    quick = [job.model_copy(update={"num_inference_steps": 1}) for job in jobs]
    first = engine.draw(quick[0], loras[0]).tobytes()
    memory = []

    def one(number: int) -> None:
        chance = random.Random(number)
        i, scale = chance.randrange(4), chance.choice([0.3, 1.0, 1.5])
        engine.draw(quick[i].model_copy(update={"lora_scale": scale, "seed": number}), loras[i])

    for numbers in (range(60), range(60, 200)):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, numbers))
        assert engine.draw(quick[0], loras[0]).tobytes() == first
        gc.collect()
        memory.append(_held())
    (adapters, tensors, rss), (adapters_after, tensors_after, rss_after) = memory
    assert adapters_after <= adapters
    assert tensors_after - tensors < 2**20
    assert rss_after - rss < 16 * 2**20


def _held() -> tuple[int, int, int]:
    """Adapters that live, bytes of all tensors but a compiler's stand-ins, of the process."""
    kinds = [(type(thing), thing) for thing in gc.get_objects()]
    adapters = sum(issubclass(kind, Adapter) for kind, _ in kinds)
    tensors = {
        thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
        for kind, thing in kinds
        if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor) and not thing.is_meta
    }
    return adapters, sum(tensors.values()), psutil.Process().memory_info().rss


def test_memory_too_short_for_one(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], monkeypatch: Any
) -> None:
    """A picture that does not fit even alone fails with its own error; the next one is drawn."""

    held: list[weakref.ref[Any]] = []

    def refuse(*_: Any, **__: Any) -> Any:
        activations = torch.zeros(9)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched, pytest.raises(OutOfMemory):
        patched.setattr(engine.pipeline.unet, "forward", refuse)
        patched.setattr("torch.cuda.empty_cache", lambda: held.append(held[0]()))
        engine.draw(jobs[0], loras[0])
    assert held[1:] == [None], "what was being computed is gone before memory is given back"
    assert engine.draw(jobs[0], loras[0]).size == (512, 512)


def _refused_by_the_allocator() -> RuntimeError:
    """What torch raises when this machine's own memory does not suffice."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 62, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), DeviceLost),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling x"), DeviceLost),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceLost),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), OutOfMemory),
        (_refused_by_the_allocator(), OutOfMemory),
        (RuntimeError("GET was unable to find an engine to execute this"), OutOfMemory),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
)
@pytest.mark.parametrize("place", ["unet", "noise", "product"])
def test_errors_of_the_device(
    engine: Engine,
    jobs: list[GenerationJob],
    loras: list[Path],
    monkeypatch: Any,
    error: Exception,
    expected: type[Exception],
    place: str,
) -> None:
    """Wherever a device reports it, too little memory is tried again, a lost device is left."""
    job = jobs[0].model_copy(update={"num_inference_steps": 1, "scheduler": "ddpm"})
    places = {
        "unet": (engine.pipeline.unet, "forward"),
        "noise": (trajectory, "next_noise"),
        "product": (torch, "bmm"),
    }

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patched, pytest.raises(expected) as raised:
        patched.setattr(*places[place], fail)
        engine.draw(job, loras[0])
    assert type(raised.value) is expected
    assert engine.draw(job, loras[0]).size == (512, 512)


def test_the_first_in_line_is_not_starved(
    engine: Engine, jobs: list[GenerationJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of another size is drawn although small ones keep coming."""
    monkeypatch.setattr(engine.pipeline, "vae", _Enlarger())
    ended: list[str] = []
    small = [jobs[i % 4].model_copy(update={"num_inference_steps": 2 + i % 3}) for i in range(40)]
    large = jobs[0].model_copy(update={"num_inference_steps": 2, "aspect_ratio": "2:2"})

    ordered = [*small[:5], large, *small[5:]]
    tasks = [Task(job, None) for job in ordered]
    for task in tasks:
        task.result.add_done_callback(lambda _, job=task.job: ended.append(job.aspect_ratio))
    engine.loop.add(*tasks)
    for task in tasks:
        task.result.result()
    assert ended.index("2:2") < 5 + 16 + 2 * engine.batch


def test_profiles_are_cheaper_and_never_default(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """``ays`` takes ten steps; ``guidance_interval`` asks fewer rows of the UNet."""
    steps: list[int] = []
    ays = jobs[0].model_copy(update={"speed_profile": "ays", "num_inference_steps": 50})
    engine.draw(ays, loras[0], on_step=steps.append)
    assert steps == list(range(11)) and ays.total_steps == 10
    rows: list[int] = []
    forward = engine.pipeline.unet.forward

    def counted(latents: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        rows.append(len(latents))
        return forward(latents, *arguments, **options)

    try:
        engine.pipeline.unet.forward = counted
        job = jobs[0].model_copy(update={"num_inference_steps": 20})
        engine.draw(job, loras[0])
        plain, rows[:] = list(rows), []
        engine.draw(job.model_copy(update={"speed_profile": "guidance_interval"}), loras[0])
    finally:
        engine.pipeline.unet.forward = forward
    assert set(plain) == {2} and 1 in rows and 2 in rows


def test_the_warm_up_says_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    """How many shapes, and when each size is ready: one and two jobs, guided or not, a long one."""
    sizes: list[int] = []

    def add(*tasks: Task) -> None:
        sizes.append(len(tasks))
        for task in tasks:
            task.result.set_result(Image.new("RGB", (1, 1)))

    with caplog.at_level(logging.INFO, "stylegen"):
        warm_up(SimpleNamespace(add=add), 2)  # type: ignore[arg-type]
    said = ("for 15 shapes", "of 512x512 after", "of 768x768 after", "of 512x1024 after")
    assert all(part in text for part, text in zip(said, caplog.messages, strict=True))
    assert sizes == [1, 1, 2, 2, 1] * 3


def test_another_lora_is_the_same_graph(jobs: list[GenerationJob], tmp_path: Path) -> None:
    """Warmed up, no job compiles anything, whatever its LoRA or scheduler, whoever joins or leaves.

    Pictures are those of an engine without graphs, with LoRAs of the other form.
    """
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    wide = replace(TINY, words=128, unet=(128,))  # wide enough for rank 128
    pipeline, other = (make_pipeline(wide, "cpu", torch.float32) for _ in range(2))
    engine = Engine(pipeline, batch=2, compile_backend=backend)  # type: ignore[arg-type]
    plain = Engine(other, batch=2)
    with patch("stylegen.pipeline.warm_up.RESOLUTIONS", {"1:1": (512, 512)}):
        engine.warm_up()
    compiled = len(graphs)
    assert compiled == 4, "one and two jobs, with guidance and without; a longer prompt is none"
    loras = [
        write_diffusers(tmp_path / "rank4.safetensors", pipeline, 4, seed=1),
        write_kohya(tmp_path / "kohya.safetensors", pipeline, 8, seed=2, alpha=4.0),
        write_diffusers(tmp_path / "rank32.safetensors", pipeline, 32, seed=3, size=0.05),
        write_diffusers(tmp_path / "text.safetensors", pipeline, 8, seed=4, text=True),
        write_diffusers(tmp_path / "wide.safetensors", pipeline, 4, seed=6, convolutions=True),
        write_rslora(tmp_path / "rslora.safetensors", pipeline, 16, seed=7, alpha=4.0),
        write_diffusers(tmp_path / "rank64.safetensors", pipeline, 64, seed=8, size=0.03),
        write_diffusers(tmp_path / "rank128.safetensors", pipeline, 128, seed=9, size=0.02),
    ]
    long = {"num_inference_steps": 7, "speed_profile": "guidance_interval"}
    more = [{"guidance_scale": 1.0}, {"prompt_tags": ("red heart",) * 40}, long, {"lora_scale": 0}]
    more += [{"num_inference_steps": 2, "scheduler": name} for name in SCHEDULERS]
    mixed = [*jobs, *(job.model_copy(update=own) for job, own in zip(cycle(jobs), more))]
    files = [lora for lora, _ in zip(cycle(loras), mixed)]
    weights = engine.loop.active.batch.lora.weights.values()  # type: ignore[attr-defined]
    places = [each.data_ptr() for each in weights]
    pictures = [_drawn(each, *_tasks(each, mixed, files)) for each in (engine, plain)]
    assert len(graphs) == compiled
    assert [each.data_ptr() for each in weights] == places
    for drawn, expected in zip(*pictures, strict=True):
        assert np.abs(drawn - expected).max() <= 1
        assert drawn.std() > 1, "not a picture of one colour"
    engine.close()
    plain.close()


def _merged_by_hand(pipeline: Any, adapter: Adapter) -> Any:
    """A UNet whose weights hold an adapter's updates."""
    unet = copy.deepcopy(pipeline.unet)
    for layer, (down, up) in adapter.updates.items():
        if layer.startswith("unet."):
            weight = unet.get_submodule(layer.removeprefix("unet.")).weight
            weight += (up @ down.flatten(1)).view_as(weight)
    return unet


@torch.no_grad()
@pytest.mark.parametrize("form", [AddedLora, partial(MergedLora, slots=3)], ids=["added", "merged"])
def test_neighbours_of_every_kind(tmp_path: Path, form: Any) -> None:
    """A job's rows are its own merged model's, and the same bits whatever LoRA is beside it."""
    pipeline = make_pipeline(TINY, "cpu", torch.float32)
    kinds: list[dict[str, Any]] = [
        {"rank": 4},
        {"rank": 32, "size": 0.05},
        {"rank": 8, "convolutions": True},
        {"rank": 4, "text": True},
    ]
    files = [
        write_diffusers(tmp_path / f"{seed}.safetensors", pipeline, seed=seed, **kind)
        for seed, kind in enumerate(kinds)
    ]
    adapters = [read_adapter(file, pipeline) for file in files]
    x, words = torch.randn(6, 4, 16, 16), torch.randn(6, 77, TINY.words)
    expected = [
        _merged_by_hand(pipeline, adapter)(x[:2], 500, words[:2]).sample for adapter in adapters
    ]
    rows = form(pipeline.unet, "unet", "cpu")
    for first, alone in zip(adapters, expected, strict=True):
        seen = []
        for neighbours in ([None, None], [adapters[1], adapters[2]], [adapters[2], None]):
            rows.put([first, *neighbours])
            seen.append(pipeline.unet(x, 500, words).sample[:2])
        assert (seen[0] - alone).abs().max() < 1e-4
        assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    rows.remove()


def test_a_lora_that_cant_be_held_fails_alone(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], tmp_path: Path
) -> None:
    """In its batch; its neighbours' latents are the same to the last bit."""
    unseen = write_diffusers(tmp_path / "unseen.safetensors", engine.pipeline, 8, seed=5)
    undisturbed = together(engine, jobs, loras)
    tasks = _tasks(engine, jobs, [loras[0], unseen, *loras[2:]])  # no slot holds it by now
    bad = tasks[1].adapter

    def refuse(adapter: Adapter, device: Any, part: str) -> Any:
        if adapter is bad and part == "unet":
            raise torch.OutOfMemoryError
        return on_device(adapter, device, part)

    with patch("stylegen.pipeline.batched_lora.on_device", refuse):
        drawn = _drawn(engine, *tasks)
    assert [isinstance(each, OutOfMemory) for each in drawn] == [False, True, False, False]
    for number in (0, 2, 3):
        assert torch.equal(tasks[number].latents, undisturbed[number])


def test_merged_weights_bound_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """As many jobs as memory holds weights for, said in the log; for none, it says so at once."""
    pipeline = make_pipeline(TINY, "cpu", torch.float32)
    layers = [
        m for m in pipeline.unet.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    each = sum(layer.weight.nbytes for layer in layers)
    with patch("stylegen.pipeline.batched_lora.free_bytes", return_value=int(3.5 * each)):
        engine = Engine(pipeline, batch=4, merge_loras=True)
    assert engine.batch == 2 and "batches hold 2 jobs instead of 4" in caplog.text
    engine.close()
    with patch("stylegen.pipeline.batched_lora.free_bytes", return_value=each):
        with pytest.raises(OutOfMemory, match="are free"):
            Engine(pipeline, batch=4, merge_loras=True)


def test_graphs_for_more_than_eight_shapes(pocket: Path, jobs: list[GenerationJob]) -> None:
    """torch's own limit, of the thread that draws, would leave the ninth without a graph."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    pipeline = load_pipeline(str(pocket / "pocket"), device="cpu")
    pipeline.unet = _TinyUNet(pipeline.unet.config)
    engine = Engine(pipeline, batch=1, compile_backend=backend)  # type: ignore[arg-type]
    job = jobs[0].model_copy(update={"num_inference_steps": 1, "guidance_scale": 1.0})
    seen = []
    for pieces in range(1, 11):
        words = torch.zeros(2, 77 * pieces, pipeline.unet.config.cross_attention_dim)
        _drawn(engine, Task(job, None, prompt_embeds=words))
        seen.append(len(graphs))
    engine.close()
    assert seen == list(range(1, 11))


class _TinyUNet(torch.nn.Module):
    """A stand-in that is traced in a moment."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.device, self.dtype = config, torch.device("cpu"), torch.float32
        self.layer = torch.nn.Conv2d(config.in_channels, config.in_channels, 1)

    def forward(self, sample: torch.Tensor, _: Any, words: torch.Tensor, return_dict: bool) -> Any:
        """Something of the right shape."""
        assert not return_dict
        return (self.layer(sample) + words.mean(),)


def _drawn(engine: Engine, *tasks: Task) -> list[Any]:
    """Tasks' pictures or errors, when they were handed over at once; none waits for ever."""
    engine.loop.add(*tasks)
    return [task.result.exception(900) or np.int16(task.result.result()) for task in tasks]


def _tasks(engine: Engine, jobs: Sequence[GenerationJob], loras: Sequence[Path]) -> list[Task]:
    return [Task(job, engine.adapters.get(lora)) for job, lora in zip(jobs, loras, strict=True)]


def test_a_dead_thread_leaves_nobody_waiting(pocket: Path, jobs: list[GenerationJob]) -> None:
    """Whatever escapes the engine's thread, who waits and who comes later hear of a lost device."""
    engine = Engine(load_pipeline(str(pocket / "pocket"), device="cpu"))
    lost = torch.AcceleratorError("CUDA error: unspecified launch failure")
    large = jobs[1].model_copy(update={"aspect_ratio": "2:2"})  # waits for the first to end
    tasks = [Task(job, None) for job in (jobs[0], large)]
    with patch("torch.cuda.empty_cache", side_effect=lost):
        with patch.object(engine.pipeline.unet, "forward", _raise_out_of_memory):
            assert [type(error) for error in _drawn(engine, *tasks)] == [DeviceLost] * 2
    with pytest.raises(DeviceLost):
        engine.loop.add(Task(jobs[0], None))


def test_given_up_while_memory_is_short(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """The only picture is cancelled during the step that runs out of memory; the next is drawn."""
    first, second = _tasks(engine, jobs[:2], loras[:2])

    def refuse(*_: Any, **__: Any) -> Any:
        first.result.cancel()
        raise torch.OutOfMemoryError

    with patch.object(engine.pipeline.unet, "forward", refuse):
        engine.loop.add(first)
        with pytest.raises(CancelledError):
            first.result.result(300)
    assert _drawn(engine, second)[0].shape == (512, 512, 3)


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_memory_is_short_when_decoding(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], failures: int
) -> None:
    """It is tried again, then once in tiles, before all the steps were in vain."""
    vae, tiled = engine.pipeline.vae, []
    (plain,), decode = _drawn(engine, *_tasks(engine, jobs[:1], loras[:1])), vae.decode

    def stubborn(*given: Any, **options: Any) -> Any:
        tiled.append(vae.use_tiling)
        if len(tiled) <= failures:
            raise torch.OutOfMemoryError
        return decode(*given, **options)

    with patch.object(vae, "decode", stubborn):
        (drawn,) = _drawn(engine, *_tasks(engine, jobs[:1], loras[:1]))
    assert tiled == [False, False, True][: failures + 1] and not vae.use_tiling
    if failures == 1:
        assert np.array_equal(drawn, plain)
    elif failures == 2:  # seams: the decoder sees over a tile's edge
        assert np.abs(drawn - plain).mean() < 8
    else:
        assert isinstance(drawn, OutOfMemory)


@pytest.mark.parametrize("words", [1, 100])
def test_memory_is_short_when_words_are_encoded(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path], words: int
) -> None:
    """It is tried again, also for one piece of a long prompt."""
    job = jobs[0].model_copy(update={"prompt_tags": [*jobs[0].prompt_tags, *["heart"] * words]})
    plain, encoder = engine.draw(job, loras[0]), engine.pipeline.text_encoder
    with patch.object(encoder, "forward", Mock(wraps=encoder.forward)) as short:
        short.side_effect = chain([torch.OutOfMemoryError], repeat(DEFAULT))
        drawn = engine.draw(job, loras[0])
    assert short.call_count > 1 and np.array_equal(drawn, plain)


def test_halved_batches_grow_again(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """After steps enough without trouble; every picture is the one of an undisturbed batch."""
    long = [job.model_copy(update={"num_inference_steps": 8}) for job in jobs]
    whole, widths = _drawn(engine, *_tasks(engine, long, loras)), []
    forward = engine.pipeline.unet.forward

    def short_once(latents: torch.Tensor, *given: Any, **options: Any) -> Any:
        widths.append(len(latents))
        if len(widths) == 1:
            raise torch.OutOfMemoryError
        return forward(latents, *given, **options)

    with patch("stylegen.pipeline.admission.CLEAN_STEPS", 3):
        with patch.object(engine.pipeline.unet, "forward", short_once):
            drawn = _drawn(engine, *_tasks(engine, long, loras))
    assert widths == [8, *[4] * 3, *[8] * 5, *[4] * 3]
    assert max(np.abs(a - b).max() for a, b in zip(drawn, whole, strict=True)) <= 1


def test_one_schedulers_fault_is_one_jobs(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """An exception before the step fails that job; its neighbours' latents are the same bits."""
    jobs = [job.model_copy(update={"scheduler": "euler_a"}) for job in jobs]
    undisturbed, tasks = together(engine, jobs, loras), _tasks(engine, jobs, loras)

    def fail_at_second(step: int) -> None:
        if step == 1:
            tasks[1].trajectory.draw = Mock(side_effect=ValueError)

    tasks[1].on_step = fail_at_second
    drawn = _drawn(engine, *tasks)
    assert [isinstance(each, ValueError) for each in drawn] == [False, True, False, False]
    for number in (0, 2, 3):
        assert torch.equal(tasks[number].latents, undisturbed[number])


@torch.no_grad()
@pytest.mark.parametrize("name", ["dpmsolver++", "euler"])
def test_schedulers_share_nothing_that_changes(
    engine: Engine, jobs: list[GenerationJob], name: str
) -> None:
    """Two jobs whose steps alternate take the steps that each takes alone."""

    def begun(seed: int, steps: int) -> Task:
        own = {"seed": seed, "scheduler": name, "num_inference_steps": steps}
        task = Task(jobs[0].model_copy(update=own), None)
        engine.loop.encode_decode.begin(task)
        return task

    def walk(*tasks: Task) -> list[torch.Tensor]:
        while going := [task for task in tasks if not task.is_finished]:
            for task in going:
                latents, _ = model_input(task)
                take_steps([task], [2], torch.cat([latents.sin(), latents.cos()]))
        return [task.latents for task in tasks]

    alone = [*walk(begun(0, 5)), *walk(begun(1, 8))]
    for one, other in zip(walk(begun(0, 5), begun(1, 8)), alone, strict=True):
        assert torch.equal(one, other)


def test_steps_are_not_interrupted_for_nobody(
    engine: Engine, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """While nobody comes or goes, the engine looks at its tasks once; its callers hear of all."""
    heard: list[int] = []
    (task,) = _tasks(engine, jobs[:1], loras[:1])
    task.on_step = heard.append
    with patch("stylegen.pipeline.loop.deliver", side_effect=loop.deliver) as deliver:
        _drawn(engine, task)
    assert heard == [0, 1, 2, 3, 4, 5] and deliver.call_count == 1


def test_a_job_that_waits_has_not_begun(
    pocket: Path, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """Step 0 is when it gets its place: its time, and the estimate of it, run from then on."""
    engine, heard = Engine(load_pipeline(str(pocket / "pocket"), device="cpu"), batch=1), []
    tasks = _tasks(engine, jobs[:2], loras[:2])
    for number, task in enumerate(tasks):
        task.on_step = lambda step, number=number: heard.append((number, step))
    engine.loop.add(*tasks)
    for task in tasks:
        task.result.result(60)
    engine.close()
    assert heard == [(number, step) for number in range(2) for step in range(6)]


def test_a_small_alpha_survives_half_precision(pocket: Path, tmp_path: Path) -> None:
    """Times 1e-5 / 8, one half alone would be all but gone; too much of a scale is refused."""
    pipeline = load_pipeline(str(pocket / "pocket"), device="cpu").to(torch.float16)
    path = write_kohya(tmp_path / "small.safetensors", pipeline, 8, seed=1, alpha=1e-5)
    exact = updates(pipeline.unet, UNET, 8, seed=1)
    adapter = read_adapter(path, pipeline)
    for layer, halves in adapter.updates.items():
        down, up = (half.double().flatten(1) for half in exact[layer.removeprefix("unet.")])
        expected, (own_down, own_up) = up @ down * (1e-5 / 8), (half.double() for half in halves)
        apart = (own_up @ own_down.flatten(1) - expected).norm() / expected.norm()
        assert apart < 2e-3, layer
    with pytest.raises(LoraInvalid):
        mix_adapters([adapter], [1e9])


def test_an_offloaded_unet_has_its_loras(
    pocket: Path, jobs: list[GenerationJob], loras: list[Path]
) -> None:
    """Their numbers lie where it computes; its own weights are on no device meanwhile."""
    drawn = []
    for is_offloaded in (False, True):
        pipeline = load_pipeline(str(pocket / "pocket"), device="cpu")
        if is_offloaded:
            cpu_offload(pipeline.unet, torch.device("cpu"))
            assert pipeline.unet.device.type == "meta"
        engine = Engine(pipeline)
        drawn.append(np.int16(engine.draw(jobs[0], loras[0])))
        engine.close()
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


@torch.no_grad()
def test_long_words_while_offloaded(pocket: Path, jobs: list[GenerationJob]) -> None:
    """Weights that accelerate keeps elsewhere are on no device; where they compute counts."""
    words = jobs[0].model_copy(update={"prompt_tags": ("red heart",) * 60})
    pipeline = load_pipeline(str(pocket / "pocket"), device="cpu")
    expected = encode_prompt(pipeline, words)
    cpu_offload(pipeline.text_encoder, torch.device("cpu"))
    assert pipeline.text_encoder.device.type == "meta"
    assert torch.equal(encode_prompt(pipeline, words, torch.device("cpu")), expected)
