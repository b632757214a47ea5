"""The panel without a browser: buttons clicked by code, the background thread joined by `wait`."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from lora_files import updates
from PIL import Image
from rabbit import Broker
from s3_server import S3Server
from safetensors.torch import save_file

from stylegen.job import GenerationJob, LoraInvalid, OutOfMemory, parse_job
from stylegen.pipeline.engine import Engine
from stylegen.playground import Playground, cells
from stylegen.playground.backend import Backend, engine_backend
from stylegen.playground.controls import Controls
from stylegen.playground.drawing import Picture
from stylegen.playground.files import as_json
from stylegen.playground.grid import Grid, job_table
from stylegen.playground.library import Library, LoraFile, bucket_loras, folder_loras
from stylegen.playground.outbox import dead_letters as look_into
from stylegen.playground.outbox import webhooks_of
from stylegen.playground.recipe import make_job
from stylegen.pocket import packaged
from stylegen.queue import dead_letters, publish_job
from stylegen.signature.provenance import read_provenance
from stylegen.storage import FolderStore, make_s3_store
from stylegen.storage.cache import file_digest
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, handle_generation_task

ROOT = Path(__file__).parent.parent
STEPS = 4
BARE = {"prompt_tags": ["star"], "artist_name": "Artist", "webhook_url": "http://localhost"}
"""What a job needs, but for its LoRA."""


class Painter:
    """A generator that takes no time: a picture in the seed's colour, with steps and latents.

    At the second step of a `held` seed it waits for the `gate`, and raises its `error`; after the
    last it raises `after`.
    """

    def __init__(self) -> None:
        self.jobs: list[GenerationJob] = []
        self.loras: list[list[Path]] = []
        self.gate, self.reached = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.held, self.error = range(2**63), None
        self.after: Exception | None = None
        self.shade = 100

    def __call__(
        self,
        job: GenerationJob,
        lora_path: Path,
        *,
        extra_loras: list[Path] | None = None,
        on_step: Any,
        on_latents: Any = lambda step, latents: None,
    ) -> Image.Image:
        self.jobs.append(job)
        self.loras.append([lora_path, *(extra_loras or [])])
        for step in range(job.total_steps + 1):
            if step == 2 and job.seed in self.held:
                self.reached.release()
                assert self.gate.wait(30)
                if self.error:
                    raise self.error
            if step:
                on_latents(step, step)
            on_step(step)
        if self.after:
            raise self.after
        return Image.new("RGB", job.resolution, (job.seed % 256, self.shade, len(lora_path.stem)))


def preview(step: int) -> Image.Image:
    """A preview whose width is the step."""
    return Image.new("RGB", (step, 1))


@pytest.fixture(name="painter")
def _painter() -> Painter:
    return Painter()


@pytest.fixture(name="loras")
def _loras(tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    for path in (packaged() / "pocket-loras").glob("*.safetensors"):
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new panel's LoRAs are listed, however busy the machine is."""
    monkeypatch.setattr("stylegen.playground.panel.PATIENCE", 60)


@pytest.fixture(name="panel")
def _panel(painter: Painter, loras: Path, tmp_path: Path) -> Playground:
    backend = Backend(painter, "models/painter", 2, lambda: "a painter", preview)
    panel = Playground(backend, partial(folder_loras, loras), folder=tmp_path / "kept")
    panel.controls.sampling.steps.value = STEPS
    return panel


@pytest.fixture(name="pocket_panel")
def _pocket_panel(engine: Engine, loras: Path, tmp_path: Path) -> Playground:
    backend = engine_backend(engine, str(packaged() / "pocket"))
    panel = Playground(backend, partial(folder_loras, loras), folder=tmp_path / "kept")
    panel.controls.sampling.steps.value = STEPS
    return panel


def generate(panel: Playground) -> Picture:
    """Press Generate, wait, and give what is shown."""
    panel.toolbar.generate.click()
    assert panel.wait(60)
    assert panel.draw.picture_view.shown, panel.status.text
    return panel.draw.picture_view.shown


# Controls


@pytest.mark.parametrize("seed", [0, 1, 2**53 + 1, 2**63 - 1])
def test_a_seed_is_drawn_as_typed(panel: Playground, painter: Painter, seed: int) -> None:
    panel.controls.seed.number.value = str(seed)
    assert generate(panel).job.seed == painter.jobs[-1].seed == seed
    assert panel.controls.seed.number.value == str(seed)


def test_random_seed_is_shown_and_reused(panel: Playground, painter: Painter) -> None:
    seed = panel.controls.seed
    seed.mode.value = "random"
    first, second = generate(panel).job.seed, generate(panel).job.seed
    assert first != second == int(seed.number.value)
    panel.history.recall(panel.context.history.pictures[1])
    panel.history.chosen.picture_view.reuse.click()
    assert (seed.mode.value, seed.number.value) == ("fixed", str(first))
    assert generate(panel).job == painter.jobs[0]


def test_random_fills_an_empty_field(panel: Playground, painter: Painter) -> None:
    panel.controls.seed.mode.value, panel.controls.seed.number.value = "random", ""
    assert generate(panel).job.seed == int(panel.controls.seed.number.value)
    assert len(painter.jobs) == 1


def test_next_seed_follows_the_pictures(panel: Playground, painter: Painter) -> None:
    panel.controls.seed.mode.value, panel.controls.seed.number.value = "next", "0"
    panel.controls.sampling.count.value = 3
    generate(panel)
    generate(panel)
    assert sorted(job.seed for job in painter.jobs) == [0, 1, 2, 3, 4, 5]
    assert len(panel.draw.picture_view.strip.view.children) == 3


@pytest.mark.parametrize("typed, reported", [("-1", "seed"), ("one", "whole number"), ("", "seed")])
def test_nonsense_is_reported(
    panel: Playground, painter: Painter, typed: str, reported: str
) -> None:
    panel.controls.seed.number.value = typed
    panel.toolbar.generate.click()
    assert panel.wait() and reported in panel.status.text and not painter.jobs
    panel.controls.seed.number.value = "5"
    assert generate(panel).job.seed == 5


def test_tags_keep_their_order(panel: Playground) -> None:
    panel.controls.prompt.tags.value = ["star", "blue", "black background"]
    panel.controls.prompt.tags.value = ["blue", "star", "black background"]
    assert panel.job().prompt == "blue star black background"
    panel.controls.prompt.tags.value = []
    panel.toolbar.generate.click()
    assert "prompt_tags" in panel.status.text


def test_lora_off_is_the_base(panel: Playground) -> None:
    panel.controls.style.on.value = False
    assert panel.controls.style.scale.disabled and panel.job().lora_scale == 0
    panel.controls.style.on.value = True
    assert panel.job().lora_scale == 1


def test_second_lora_reaches_the_generator(panel: Playground, painter: Painter) -> None:
    style = panel.controls.style
    style.lora.value, style.second.value, style.second_scale.value = "mosaic", "neon", 0.25
    job = generate(panel).job
    assert [path.stem for path in painter.loras[0]] == ["mosaic", "neon"]
    assert [extra.scale for extra in job.extra_loras] == [0.25]


def test_refresh_finds_and_refuses(panel: Playground, loras: Path) -> None:
    style = panel.controls.style
    style.lora.value = "neon"
    (loras / "broken.safetensors").write_bytes(b"nothing")
    (loras / "aaa.safetensors").symlink_to(packaged() / "pocket-loras/neon.safetensors")
    style.refresh.click()
    assert panel.wait(30)
    assert style.lora.value == "neon" and "aaa" in dict(style.lora.options)
    assert "broken" not in dict(style.lora.options) and "broken" in style.refused.value


def test_listing_that_fails_is_reported(painter: Painter, tmp_path: Path) -> None:
    def unreachable() -> list[LoraFile]:
        raise ConnectionError("the bucket can't be reached")

    panel = Playground(painter, unreachable, folder=tmp_path)
    assert "bucket can't be reached" in panel.status.text
    panel.toolbar.generate.click()
    assert "no LoRA" in panel.status.text


@pytest.mark.parametrize("error, reported", [(None, "Ready."), (OSError("gone away"), "gone away")])
def test_a_slow_listing_comes_later(
    painter: Painter,
    loras: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    reported: str,
) -> None:
    """The panel is there before a bucket that takes its time, or fails in the end."""
    monkeypatch.setattr("stylegen.playground.panel.PATIENCE", 0.1)
    answered = threading.Event()

    def listing() -> list[LoraFile]:
        assert answered.wait(60)
        if error:
            raise error
        return folder_loras(loras)

    panel = Playground(painter, listing, folder=tmp_path)
    assert not panel.parts.network.wait(0) and panel.status.text == "Ready."
    answered.set()
    assert panel.wait(30) and reported in panel.status.text
    assert ("neon" in dict(panel.controls.style.lora.options)) is (error is None)


def test_what_the_model_refuses_is_refused(panel: Playground, painter: Painter) -> None:
    panel.controls.style.lora.value = "mosaic"
    painter.error = LoraInvalid("it was made for another base model")
    panel.toolbar.generate.click()
    assert panel.wait() and "another base model" in panel.status.text
    assert "mosaic" not in dict(panel.controls.style.lora.options)
    assert "another base model" in panel.controls.style.refused.value


def test_markup_in_names_is_shown_as_text(panel: Playground, loras: Path) -> None:
    (loras / "<img src=x>.safetensors").write_bytes(b"nothing")
    panel.refresh()
    assert panel.wait(30) and "&lt;img" in panel.controls.style.refused.value
    assert "<img" not in panel.controls.style.refused.value


# Running


def test_load_is_explicit_and_once(painter: Painter, loras: Path, tmp_path: Path) -> None:
    loads: list[int] = []

    def load() -> Backend:
        loads.append(1)
        if len(loads) == 1:
            raise OSError("no such model")
        return Backend(painter, "painter", describe=lambda: "a painter, 0.1 GB in use")

    panel = Playground(None, partial(folder_loras, loras), load=load, folder=tmp_path)
    panel.toolbar.generate.click()
    assert panel.wait() and not loads and "Load" in panel.status.text
    panel.toolbar.load.click()
    assert panel.wait() and "no such model" in panel.status.text and not panel.toolbar.load.disabled
    panel.toolbar.load.click()
    assert panel.wait() and panel.toolbar.load.disabled and "a painter" in panel.toolbar.state.value
    panel.load()
    assert panel.wait() and len(loads) == 2


def test_kernel_stays_free_and_requests_queue(panel: Playground, painter: Painter) -> None:
    painter.gate.clear()
    for seed in ("1", "2", "3"):
        panel.controls.seed.number.value = seed
        panel.toolbar.generate.click()
    assert painter.reached.acquire(timeout=30)
    assert not panel.wait(0) and not panel.toolbar.stop.disabled
    assert panel.toolbar.waiting.value == "2 waiting"
    painter.gate.set()
    assert panel.wait(60) and [job.seed for job in painter.jobs] == [1, 2, 3]
    assert panel.toolbar.stop.disabled and panel.toolbar.waiting.value == ""


def test_stop_keeps_what_is_finished(panel: Playground, painter: Painter) -> None:
    panel.controls.sampling.count.value, panel.controls.seed.number.value = 6, "0"
    painter.gate.clear()
    painter.held = range(2, 6)
    panel.toolbar.generate.click()
    panel.toolbar.generate.click()
    for _ in range(2):  # 0 and 1 are done when 2 and 3 are held
        assert painter.reached.acquire(timeout=30)
    panel.toolbar.stop.click()
    painter.gate.set()
    assert panel.wait(60) and panel.status.text == "Stopped; 2 of 6 pictures kept."
    assert {picture.job.seed for picture in panel.context.history.pictures} == {0, 1}
    assert {job.seed for job in painter.jobs} == {0, 1, 2, 3}


def test_stop_while_drawing(panel: Playground, painter: Painter) -> None:
    painter.gate.clear()
    panel.toolbar.generate.click()
    assert painter.reached.acquire(timeout=30)
    panel.toolbar.stop.click()
    painter.gate.set()
    assert panel.wait(60) and panel.status.text == "Stopped; 0 of 1 pictures kept."
    assert panel.draw.picture_view.shown is None
    assert generate(panel)


def test_no_preview_stays(panel: Playground, painter: Painter) -> None:
    """After a failure, and after Stop, the last finished picture is shown again, or none."""
    view, panel.controls.sampling.steps.value = panel.draw.picture_view, 10
    calls: list[str] = []
    view.caption.observe(lambda change: calls.append(change["new"]), "value")
    before = (view.picture.layout.display, view.caption.value)
    for finished in (False, True):
        if finished:
            generate(panel)
            before = (view.picture.value, view.caption.value)
        painter.after = RuntimeError("late")
        panel.toolbar.generate.click()
        assert panel.wait(60) and "late" in panel.status.text
        painter.after = None
        seen = view.picture.value if finished else view.picture.layout.display
        assert (seen, view.caption.value) == before
    assert any("a preview" in caption for caption in calls)


def test_a_panel_that_raises_stops_no_work(panel: Playground, painter: Painter) -> None:
    """A widget that fails at the change to idle, or at an error, leaves the queue alive."""
    show, panel.toolbar.show = panel.toolbar.show, lambda: 1 / 0  # type: ignore[method-assign]
    panel.parts.runner.submit(lambda stop: None)
    assert panel.wait(30)
    panel.toolbar.show = show  # type: ignore[method-assign]
    generate(panel)
    assert len(painter.jobs) == 1


def test_a_picture_that_cannot_be_kept_is_shown(panel: Playground) -> None:
    """A file stands where the history's folder should be, as on a disk that takes no more."""
    (panel.context.folder / "history").write_bytes(b"")
    shown = generate(panel)
    assert "1 of 1 drawn, but not kept" in panel.status.text
    assert panel.context.history.pictures == [shown] and "sg-error" in panel.status.line.value
    (panel.context.folder / "grids").write_bytes(b"")
    panel.compare.axes.x.name.value, panel.compare.axes.x.values.value = "seed", "0, 1"
    panel.compare.draw.click()
    assert panel.wait(60) and panel.compare.sheet.grid and not panel.compare.sheet.grid.missing
    assert "2 of 2 drawn, but not kept" in panel.status.text


def test_progress_and_previews(panel: Playground) -> None:
    panel.controls.sampling.steps.value = 10
    seen: list[int] = []
    shown: list[bytes] = []
    panel.context.progress.gauge.observe(lambda change: seen.append(change["new"]), "value")
    panel.draw.picture_view.picture.observe(lambda change: shown.append(change["new"]), "value")
    generate(panel)
    assert seen[-1] == panel.context.progress.gauge.max == 10 and seen == sorted(seen)
    assert len(shown) == 3  # after steps 5 and 10, then the picture
    assert panel.context.progress.text.value.endswith(" s")


@pytest.mark.parametrize("error", [OutOfMemory("too big"), MemoryError("too big")])
def test_out_of_memory_has_a_way_out(panel: Playground, painter: Painter, error: Any) -> None:
    painter.error = error
    panel.toolbar.generate.click()
    assert panel.wait() and "too big" in panel.status.text and "aspect ratio" in panel.status.text
    assert "sg-error" in panel.status.line.value
    painter.error = None
    assert generate(panel)


# Comparing


def test_grid_costs_draws_resumes_exports(panel: Playground, painter: Painter) -> None:
    compare = panel.compare
    compare.axes.x.name.value, compare.axes.y.name.value = "lora", "seed"
    compare.axes.x.values.value, compare.axes.y.values.value = "neon, mosaic", "0, 1"
    assert compare.axes.estimate.value == "4 pictures; time unknown until one is drawn"
    generate(panel)
    compare.axes.update()
    assert re.match(r"4 pictures, about \d+ s", compare.axes.estimate.value)
    compare.draw.click()
    assert panel.wait(60) and compare.axes.estimate.value == "4 of 4 are there"
    compare.axes.y.values.value = "0, 1, 2"
    assert compare.axes.estimate.value.startswith("4 of 6 are there; 2 pictures")
    compare.draw.click()
    assert panel.wait(60) and len(painter.jobs) == 1 + 6
    compare.sheet.export.click()
    (sheet,) = panel.context.folder.glob("grid-*.png")
    with Image.open(sheet) as image:
        rows = json.loads(image.text["jobs"])
    assert rows == json.loads(sheet.with_suffix(".json").read_text("utf-8"))
    assert {row["state"] for row in rows} == {"drawn"} and len(rows) == 6


def test_the_first_axis_runs_across(panel: Playground, painter: Painter) -> None:
    """X, Y and Z are columns, rows and blocks, in whatever order they were chosen."""
    compare = panel.compare
    for axis, name, values in (
        (compare.axes.z, "guidance", "1, 3"),
        (compare.axes.x, "seed", "7, 0"),
        (compare.axes.y, "scale", "0, 1, 2"),
    ):
        axis.name.value, axis.values.value = name, values
    compare.draw.click()
    assert panel.wait(60) and compare.sheet.grid
    drawn = compare.sheet.grid
    assert list(drawn.axes.items()) == [
        ("seed", (7, 0)),
        ("scale", (0.0, 1.0, 2.0)),
        ("guidance", (1.0, 3.0)),
    ]
    for (seed, scale, guidance), cell in drawn.cells.items():
        job = cell.job
        assert (job.seed, job.lora_scale, job.guidance_scale) == (seed, scale, guidance)
        assert cell.image.getpixel((0, 0))[0] == seed
    assert len(painter.jobs) == 12


def test_an_estimate_is_what_such_pictures_took(
    panel: Playground, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four steps took three seconds together; what was stopped or failed teaches nothing."""
    compare, now = panel.compare, [50.0]
    monkeypatch.setattr(panel.context.progress, "_clock", lambda: now[0])
    panel.controls.sampling.count.value = 2
    compare.axes.x.name.value, compare.axes.x.values.value = "steps", "4, 8, 20"

    def takes(seconds: float) -> None:
        painter.gate.clear()
        panel.toolbar.generate.click()
        for _ in range(2):
            assert painter.reached.acquire(timeout=30)
        now[0] += seconds
        painter.gate.set()
        assert panel.wait(60)
        compare.axes.update()

    takes(3.0)
    assert panel.status.text == "Done: 2 pictures in 3.0 s."
    assert "3 pictures, about 12 s (4.0 s each)" in compare.axes.estimate.value
    painter.error = RuntimeError("no paint")
    takes(100.0)
    painter.error = None
    assert "about 12 s" in compare.axes.estimate.value
    takes(1.0)  # counts twice as much as the request before it
    assert "about 7 s (2.2 s each)" in compare.axes.estimate.value


def test_grid_over_three_axes(panel: Playground, painter: Painter) -> None:
    compare = panel.compare
    for axis, name in (
        (compare.axes.x, "scheduler"),
        (compare.axes.y, "guidance"),
        (compare.axes.z, "aspect"),
    ):
        axis.name.value = name
    compare.draw.click()
    assert panel.wait(60) and len(painter.jobs) == 2 * 3 * 3
    assert len(panel.context.history.pictures) == 18


@pytest.mark.parametrize(
    "names, values, reported",
    [
        (("seed", "seed"), ("1", "2"), "the same"),
        (("seed", ""), ("one", ""), "not a list of numbers"),
        (("lora", ""), ("nobody", ""), "no LoRA"),
        (("", ""), ("", ""), "one to three axes"),
        (("seed", ""), ("-1", ""), "seed"),
        (("aspect", ""), ("1:1, 3:2", ""), "no aspect '3:2'"),
    ],
)
def test_wrong_axes_are_reported(panel: Playground, names: Any, values: Any, reported: str) -> None:
    for axis, name, text in zip((panel.compare.axes.x, panel.compare.axes.y), names, values):
        axis.name.value, axis.values.value = name, text
    panel.compare.draw.click()
    assert reported in panel.status.text and panel.wait()


def test_stopped_grid_is_resumed(panel: Playground, painter: Painter) -> None:
    panel.compare.axes.x.name.value, panel.compare.axes.x.values.value = "seed", "0, 1, 2, 3, 4, 5"
    painter.gate.clear()
    panel.compare.draw.click()
    for _ in range(2):
        assert painter.reached.acquire(timeout=30)
    panel.toolbar.stop.click()
    painter.gate.set()
    assert panel.wait(60) and panel.status.text.startswith("Stopped")
    panel.compare.draw.click()
    assert panel.wait(60) and not panel.compare.sheet.grid.missing


def test_grid_asked_for_while_the_model_loads_is_kept(
    painter: Painter, loras: Path, tmp_path: Path
) -> None:
    """Its cells are there for the next kernel."""
    for _ in range(2):
        listing = partial(folder_loras, loras)
        load = partial(Backend, painter, "models/painter", digest="a" * 64)
        panel = Playground(None, listing, load=load, folder=tmp_path)
        panel.compare.axes.x.name.value, panel.compare.axes.x.values.value = "seed", "0, 1"
        panel.load()
        panel.compare.draw.click()
        assert panel.wait(60) and not panel.compare.sheet.grid.missing
    assert len(painter.jobs) == 2


@pytest.mark.parametrize(
    "first, second",
    [
        (("models/painter", "a" * 64), ("others/painter", "b" * 64)),
        (("models/painter", ""), ("models/painter", "")),
        (("", ""), ("", "")),
    ],
)
def test_cells_of_other_weights_are_not_there(
    painter: Painter, loras: Path, tmp_path: Path, first: Any, second: Any
) -> None:
    """One name for two models, or weights that nobody knows, resume no grid of another panel."""
    for model, digest in (first, second):
        backend = Backend(painter, model, digest=digest)
        panel = Playground(backend, partial(folder_loras, loras), folder=tmp_path)
        panel.compare.axes.x.name.value, panel.compare.axes.x.values.value = "seed", "0, 1"
        assert panel.compare.axes.estimate.value.startswith("2 pictures")
        panel.compare.draw.click()
        assert panel.wait(60) and panel.compare.axes.estimate.value == "2 of 2 are there"
    assert len(painter.jobs) == 4


@pytest.mark.parametrize("kind", [list, tuple, ", ".join])
def test_tags_of_an_axis_are_text_or_a_list(kind: Any) -> None:
    """In plain Python a prompt is a list; its cell is found by a tuple."""
    lora = LoraFile("a", "s3://models/a", Path("x"))
    job = make_job(BARE | {"style_id": "a", "lora_model_url": lora.url})
    drawn = Grid(job, {"tags": [kind(["blue", "star"])]}, {"a": lora})
    ((key, cell),) = drawn.jobs.items()
    assert cell.prompt_tags == ("blue", "star") and drawn.sheet(32).width and job_table(drawn)
    assert key == (("blue, star" if isinstance(key[0], str) else ("blue", "star")),)


@pytest.mark.parametrize("name", ["blue, star, " * 9, "가나다라마바사아자차카타파하" * 3])
def test_captions_stay_in_their_cells(name: str) -> None:
    """Nothing is written into the room between two cells."""
    texts = f"a{name}", f"b{name}"
    loras = {text: LoraFile(text, f"s3://models/{text}", Path("x")) for text in texts}
    job = make_job(BARE | {"style_id": "a", "lora_model_url": "s3://models/a"})
    sheet = Grid(job, {"lora": list(loras)}, loras).sheet(64)
    head = sheet.crop((0, 0, sheet.width, 30))
    for left in (0, 6 + 64, 6 + 64 + 6 + 64):
        assert head.crop((left, 0, left + 6, 30)).getcolors() == [(6 * 30, (255, 255, 255))]


def test_another_grid_is_another_export(panel: Playground) -> None:
    """Two grids of one first cell and one size; each file stays as it was."""
    compare, files = panel.compare, {}
    compare.axes.x.name.value = "seed"
    for seeds in ("0, 1", "0, 2"):
        compare.axes.x.values.value = seeds
        compare.draw.click()
        assert panel.wait(60)
        compare.sheet.export.click()
        files[seeds] = {path: path.read_bytes() for path in panel.context.folder.glob("grid-*")}
    assert len(files["0, 1"]) == 2 and len(files["0, 2"]) == 4
    assert files["0, 1"].items() <= files["0, 2"].items()


@pytest.mark.parametrize("retrained", ["mosaic", "neon"])
def test_a_retrained_lora_is_drawn_anew(panel: Playground, loras: Path, retrained: str) -> None:
    """Overwritten in place, whether it is the first of the job or the second."""
    style, compare = panel.controls.style, panel.compare
    style.lora.value, style.second.value = "mosaic", "neon"
    compare.axes.x.name.value, compare.axes.x.values.value = "seed", "0, 1"
    compare.draw.click()
    assert panel.wait(60) and compare.axes.estimate.value == "2 of 2 are there"
    (loras / f"{retrained}.safetensors").unlink()
    (loras / f"{retrained}.safetensors").write_bytes(b"another style")
    compare.axes.update()
    assert compare.axes.estimate.value.startswith("2 pictures")


def test_typing_reads_a_lora_once(
    panel: Playground, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells' names hold LoRAs' digests; each keystroke asks for all of them."""
    panel.compare.axes.x.name.value, panel.compare.axes.x.values.value = "lora", "neon, mosaic"
    reads: list[Path] = []

    def digest(path: Path) -> str:
        reads.append(path)
        return file_digest(path)

    monkeypatch.setattr(cells, "file_digest", digest)
    for text in ("neon", "neon, mosaic", "mosaic, neon"):
        panel.compare.axes.x.values.value = text
    assert not reads
    (loras / "neon.safetensors").unlink()
    (loras / "neon.safetensors").write_bytes(b"another style")
    panel.compare.axes.x.values.value = "neon"
    assert reads == [loras / "neon.safetensors"]


def test_two_pictures_side_by_side(panel: Playground) -> None:
    for seed in ("0", "9"):
        panel.controls.seed.number.value = seed
        generate(panel)
    box = panel.compare.difference
    names = [name for _, name in box.first.options[1:]]
    box.first.value, box.second.value = names
    assert "100.0% of pixels differ" in box.shown.value and "seed" in box.shown.value
    generate(panel)
    assert (box.first.value, box.second.value) == tuple(names)


# Keeping


def fill_in(panel: Playground) -> GenerationJob:
    """Set every control to something that is not its default."""
    parts = panel.controls
    parts.prompt.tags.value, parts.prompt.negative.value = ["blue", "star"], "red"
    parts.prompt.weights.value = True
    parts.style.lora.value, parts.style.scale.value = "watercolour", 0.5
    parts.style.second.value, parts.style.second_scale.value = "neon", 0.25
    parts.seed.number.value = "0"
    parts.sampling.aspect.value, parts.sampling.scheduler.value = "2:2", "euler"
    parts.sampling.steps.value, parts.sampling.guidance.value = 7, 3.0
    parts.sampling.profile.value = "guidance_interval"
    parts.signature.artist.value, parts.signature.signed.value = "김하늘", False
    return panel.job()


def test_every_control_is_recalled(panel: Playground) -> None:
    job = fill_in(panel)
    defaults = GenerationJob.model_construct()
    assert all(
        getattr(job, name) != getattr(defaults, name)
        for name in GenerationJob.model_fields
        if hasattr(defaults, name)
    )
    assert generate(panel).job == job
    other = Controls(panel.context.session.library, ["x"])
    assert other.recall(job.model_dump(mode="json")) == [] and other.job() == job


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 0},
        {"style_id": 0},
        {"guidance_scale": 0.0},
        {"lora_scale": 0.0},
        {"lora_scale": -0.5},
        {"negative_prompt": "0"},
        {"prompt_tags": ("0",)},
        {"extra_loras": [{"scale": 0.0}]},
        {"signature": {"opacity": 0}},
        {"seed": 0, "style_id": 0, "guidance_scale": 0.0, "lora_scale": 0.0},
    ],
    ids=str,
)
def test_a_zero_is_recalled(panel: Playground, fields: dict[str, Any]) -> None:
    """By the controls, by a picture's tile, and by a preset, over controls that say otherwise."""
    url = panel.context.session.library.loras["neon"].url
    if "extra_loras" in fields:
        fields = {"extra_loras": [{"url": url, **extra} for extra in fields["extra_loras"]]}
    job = make_job(panel.job().model_dump() | fields)
    assert panel.controls.recall(job.model_dump(mode="json")) == [] and panel.job() == job
    generate(panel)
    panel.history.files.name.value = "zero"
    panel.history.files.save.click()
    for button in (panel.history.gallery.tiles[0].button, panel.history.files.load):
        fill_in(panel)
        panel.controls.seed.number.value = "5"
        assert panel.job() != job
        button.click()
        assert panel.job() == job


def test_each_tile_is_its_own_picture(panel: Playground, painter: Painter) -> None:
    """Of three pictures of which the first is ready last: on the strip and in the history."""
    panel.controls.sampling.count.value, panel.controls.seed.number.value = 3, "0"
    two, history = threading.Event(), panel.context.history
    history.watchers.append(lambda: two.set() if len(history.pictures) == 2 else None)
    painter.gate.clear()
    painter.held = range(0, 1)
    panel.toolbar.generate.click()
    assert two.wait(30)  # seeds 1 and 2 are done
    painter.gate.set()
    assert panel.wait(60)
    strip = [box.children[1] for box in panel.draw.picture_view.strip.view.children]
    assert [button.tooltip.split(", seed ")[1][0] for button in strip] == ["0", "1", "2"]
    for seed, button in enumerate(strip):
        button.click()
        assert panel.draw.picture_view.shown and panel.draw.picture_view.shown.job.seed == seed
    tiles = panel.history.gallery.tiles
    assert tiles[0].picture.job.seed == 0 and {tile.picture.job.seed for tile in tiles} == {0, 1, 2}
    for tile in tiles:
        tile.button.click()
        shown = panel.history.chosen.picture_view.shown
        assert shown and f"seed {shown.job.seed}," in tile.button.tooltip
        assert (
            shown.image.getpixel((0, 0))[0]
            == shown.job.seed
            == int(panel.controls.seed.number.value)
        )


def test_a_hand_signs_for_its_own_artist_only(panel: Playground) -> None:
    """Recalled, it is seen; under another artist's name it is gone."""
    hand, signature = "s3://artists/a/hand.png", panel.controls.signature
    recalled = panel.job().model_dump() | {"artist_name": "A", "signature": {"image_url": hand}}
    for changes in ({"artist_name": "B"}, {"signature": {}}):
        assert panel.controls.recall(recalled) == []
        assert panel.job().signature.image_url == hand
        assert hand in signature.hand.value and signature.hand.layout.display == ""
        panel.controls.style.lora.value = "neon"
        if "artist_name" in changes:
            signature.artist.value = "B"
        else:
            panel.controls.recall(recalled | changes)
        assert panel.job().signature.image_url is None and signature.hand.layout.display == "none"


def test_click_in_the_gallery_recalls(panel: Playground) -> None:
    job = fill_in(panel)
    generate(panel)
    panel.controls.recall({"prompt_tags": ["circle"]})
    assert panel.job() != job
    panel.history.gallery.tiles[0].button.click()
    assert panel.job() == job and panel.history.chosen.job() == job


def test_history_outlives_the_kernel(panel: Playground, loras: Path) -> None:
    pictures = [generate(panel)]
    panel.controls.seed.number.value = "9"
    pictures.insert(0, generate(panel))
    (panel.context.folder / "history/broken.png").write_bytes(b"nothing")
    again = Playground(None, partial(folder_loras, loras), folder=panel.context.folder)
    found = again.context.history.pictures
    assert [picture.job for picture in found] == [picture.job for picture in pictures]
    assert found[0].image.tobytes() == pictures[0].image.tobytes()
    again.history.gallery.tiles[1].button.click()
    assert again.job() == pictures[1].job


def test_a_picture_says_which_model_drew_it(painter: Painter, loras: Path, tmp_path: Path) -> None:
    """Label and code name the model that drew it, not the one that is loaded now."""
    for model in ("old", "new"):
        backend = Backend(painter, f"models/{model}", digest=model * 20)
        panel = Playground(backend, partial(folder_loras, loras), folder=tmp_path)
        if model == "old":
            generate(panel)
    panel.history.gallery.tiles[0].button.click()
    label = read_provenance(panel.history.chosen.save())
    assert (label["model"], label["model_sha256"]) == ("old", "old" * 20)
    assert "models/old" in panel.history.export.as_python()


@pytest.mark.parametrize(
    "first, second",
    [
        (("models/painter", "a" * 64), ("others/painter", "b" * 64)),
        (("models/painter", ""), ("models/other", "")),
    ],
)
def test_models_share_a_history(
    painter: Painter, loras: Path, tmp_path: Path, first: Any, second: Any
) -> None:
    """One recipe drawn by two models is two pictures: to see, to compare, and to save."""
    for model, digest in (first, second, second):
        backend = Backend(painter, model, digest=digest)
        panel = Playground(backend, partial(folder_loras, loras), folder=tmp_path)
        generate(panel)
        painter.shade = 200
    assert [picture.model for picture in panel.context.history.pictures] == [second[0], first[0]]
    box = panel.compare.difference
    labels, names = zip(*box.first.options[1:])
    assert len(set(labels)) == 2 and Path(first[0]).name in labels[1]
    box.first.value, box.second.value = names
    assert "100.0% of pixels differ" in box.shown.value
    files = set()
    for tile in panel.history.gallery.tiles:
        tile.button.click()
        files.add(panel.history.chosen.save())
    assert len(files) == 2


def test_a_retrained_lora_makes_another_picture(panel: Playground, loras: Path) -> None:
    """Its file is overwritten in place; both pictures stay, and the labels tell them apart."""
    path = loras / f"{panel.controls.style.lora.value}.safetensors"
    generate(panel)
    path.unlink()
    path.write_bytes(b"another style")
    generate(panel)
    generate(panel)
    options = panel.compare.difference.first.options[1:]
    assert len(panel.context.history.pictures) == len(dict(options)) == 2


def test_a_history_of_earlier_is_shown(panel: Playground, loras: Path) -> None:
    """Its files lay in one folder; drawn again, such a picture replaces its tile."""
    generate(panel)
    (path,) = panel.context.folder.glob("history/*/*.png")
    path.rename(panel.context.folder / "history" / path.name)
    again = Playground(
        panel.context.session.backend, partial(folder_loras, loras), folder=panel.context.folder
    )
    assert len(again.context.history.pictures) == 1
    again.history.gallery.tiles[0].button.click()
    generate(again)
    assert path.exists() and len(again.context.history.pictures) == 1


def test_presets(panel: Playground) -> None:
    job, files = fill_in(panel), panel.history.files
    files.name.value = "my blue star"
    files.save.click()
    panel.controls.recall({"prompt_tags": ["circle"]})
    assert files.preset.value == "my blue star"
    files.load.click()
    assert panel.job() == job
    files.name.value = "../evil"
    files.save.click()
    assert "name" in panel.status.text


def test_what_is_kept_is_private(
    painter: Painter, loras: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures, presets and tables hold prompts; a umask that hides nothing changes nothing."""
    (tmp_path / "temporary").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    backend, store = Backend(painter, "models/painter", digest="d1ge57"), FolderStore(pocket)
    before = os.umask(0)
    try:
        for home, draws in (("home/kept", backend), ("home", painter)):
            listing = partial(folder_loras, loras)
            panel = Playground(draws, listing, store=store, folder=tmp_path / home)
            fetched = {"style_id": 10, "lora_model_url": "s3://models/style_10.safetensors"}
            panel.open(as_json(panel.job().model_copy(update=fetched)).encode())
            generate(panel)
            panel.compare.axes.x.name.value, panel.compare.axes.x.values.value = "seed", "0, 1"
            panel.compare.draw.click()
            assert panel.wait(60)
            panel.compare.sheet.export.click()
            panel.history.files.name.value = "star"
            panel.history.files.save.click()
            panel.history.gallery.tiles[0].button.click()
            panel.history.chosen.save()
    finally:
        os.umask(before)
    made = [tmp_path / name for name in ("home", "temporary")]
    written = made + [path for folder in made for path in folder.rglob("*")]
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in written}
    assert modes == {(True, 0o700), (False, 0o600)}
    kinds = Counter(path.suffix for path in written if path.is_file())
    assert kinds == {".png": 12, ".json": 4, ".jpg": 2, ".safetensors": 2}


def test_uploads(panel: Playground) -> None:
    job = fill_in(panel)
    generate(panel)
    panel.history.gallery.tiles[0].button.click()
    for data in (panel.history.chosen.save().read_bytes(), as_json(job).encode()):
        panel.controls.recall({"prompt_tags": ["circle"]})
        facts = {"name": "a", "type": "", "size": len(data), "last_modified": datetime.now()}
        panel.history.files.upload.value = ({**facts, "content": memoryview(data)},)
        assert panel.job() == job
    panel.open(b"neither picture nor job")
    assert "JSON" in panel.status.text


def test_a_message_without_a_lora_adds_none(painter: Painter, loras: Path, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    panel = Playground(painter, partial(folder_loras, loras), store=store, folder=tmp_path)
    before = list(panel.context.session.library.loras)
    panel.open(b'{"generation_id": 1, "prompt_tags": ["star"]}')
    assert list(panel.context.session.library.loras) == before
    assert "lora: missing" in panel.status.text and panel.job().prompt == "star"


def test_unknown_lora_is_fetched_from_the_store(
    painter: Painter, loras: Path, pocket: Path, tmp_path: Path
) -> None:
    store = FolderStore(pocket)
    panel = Playground(painter, partial(folder_loras, loras), store=store, folder=tmp_path)
    panel.open(
        as_json(panel.job().model_copy(update={"style_id": 10}))
        .replace(panel.job().lora_model_url, "s3://models/style_10.safetensors")
        .encode()
    )
    assert generate(panel).job.style_id == 10
    assert (
        painter.loras[-1][0].read_bytes() == (pocket / "models/style_10.safetensors").read_bytes()
    )


# The real engine


def test_the_workers_own_picture(
    pocket_panel: Playground, engine: Engine, tmp_path: Path, backend: WebhookReceiver
) -> None:
    """A pasted job makes the worker draw the same picture, byte for byte before signing."""
    pocket_panel.controls.seed.number.value = "0"
    pocket_panel.controls.style.lora.value = "neon"
    pocket_panel.controls.style.second.value = "mosaic"
    shown = generate(pocket_panel)
    pocket_panel.history.gallery.tiles[0].button.click()
    pocket_panel.history.export.json.click()
    text = pocket_panel.history.export.code.texts[0]
    pocket_panel.history.broker_panel.close()
    job = parse_job(text.encode()).model_copy(update={"webhook_url": backend.url})
    drawn: list[Image.Image] = []

    def draw(*arguments: Any, **options: Any) -> Image.Image:
        drawn.append(engine.draw(*arguments, **options))
        return drawn[0]

    parts = Parts(draw, FolderStore(tmp_path / "bucket"), (backend.url,), "t0ken")
    assert handle_generation_task(as_json(job).encode(), parts).result_url
    assert drawn[0].tobytes() == shown.image.tobytes()


_WORKER = """
import sys
from pathlib import Path

from stylegen.pipeline.engine import Engine
from stylegen.worker import main

draw = Engine.draw


def draw_and_save(*arguments, **options):
    image = draw(*arguments, **options)
    Path("drawn").write_bytes(image.tobytes())
    return image


Engine.draw = draw_and_save
sys.exit(main())
"""


def test_the_command_draws_a_pasted_job(pocket_panel: Playground, tmp_path: Path) -> None:
    """The two texts that the panel shows, in a shell that knows nothing else: equal to the byte.

    The ``worker.py`` here is the project's, and also keeps what is drawn before it is signed.
    """
    shown, broker_panel = generate(pocket_panel), pocket_panel.history.broker_panel
    pocket_panel.history.gallery.tiles[0].button.click()
    pocket_panel.history.export.json.click()
    job, command = pocket_panel.history.export.code.texts
    (tmp_path / "job.json").write_text(job, encoding="utf-8")
    (tmp_path / "worker.py").write_text(_WORKER, encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.defpath}"
    plain = {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    shell = ["sh", "-c", command]
    done = subprocess.run(
        shell, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        len(broker_panel.outbox().receiver.wait_for(1, "complete", 10)) == 1
        and "complete: file:" in broker_panel.events.value
    )
    broker_panel.close()
    assert (tmp_path / "drawn").read_bytes() == shown.image.tobytes()


def test_the_code_draws_the_same(pocket_panel: Playground) -> None:
    for second in ("", "mosaic"):
        pocket_panel.controls.style.second.value = second
        shown = generate(pocket_panel)
        pocket_panel.history.gallery.tiles[0].button.click()
        pocket_panel.history.export.python.click()
        names: dict[str, Any] = {}
        exec(pocket_panel.history.export.code.texts[0], names)  # pylint: disable=exec-used
        names["engine"].close()
        assert names["image"].tobytes() == shown.image.tobytes()


@pytest.fixture(name="rows")
def _rows(engine: Engine) -> Iterator[Counter[int]]:
    """Counts how many rows each pass through the UNet has."""
    seen: Counter[int] = Counter()

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[len(inputs[0])] += 1

    hook = engine.pipeline.unet.register_forward_pre_hook(count)
    yield seen
    hook.remove()


def test_a_real_grid_of_loras_is_drawn_together(
    pocket_panel: Playground, rows: Counter[int]
) -> None:
    """Four LoRAs share the UNet's passes: with guidance eight rows, in nearly each of ten steps."""
    compare = pocket_panel.compare
    pocket_panel.controls.sampling.steps.value = 10
    compare.axes.x.name.value = "lora"
    compare.draw.click()
    assert pocket_panel.wait(120)
    cells = compare.sheet.grid.cells
    assert len({picture.image.tobytes() for picture in cells.values()}) == len(cells) == 4
    assert pocket_panel.draw.picture_view.shown is None
    assert max(rows) == 8 and rows[8] >= 6
    assert sum(count * passes for count, passes in rows.items()) == 4 * 2 * 10


def test_an_incompatible_lora_is_refused_by_the_model(
    pocket_panel: Playground, engine: Engine, loras: Path
) -> None:
    layer = next(iter(updates(engine.pipeline.unet, ("to_q",), 4, 0)))
    names = (f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight")
    save_file(dict(zip(names, (torch.ones(4, 7), torch.ones(7, 4)))), loras / "wide.safetensors")
    pocket_panel.refresh()
    assert pocket_panel.wait(30)
    pocket_panel.controls.style.lora.value = "wide"
    pocket_panel.toolbar.generate.click()
    assert pocket_panel.wait(60) and pocket_panel.draw.picture_view.shown is None
    assert "wide" in pocket_panel.controls.style.refused.value
    assert "wide" not in dict(pocket_panel.controls.style.lora.options)
    assert generate(pocket_panel)


# A bucket


def test_loras_of_a_bucket(painter: Painter, s3: S3Server, tmp_path: Path) -> None:
    """Listed by name, fetched by the first picture and not by typing, anew when overwritten."""
    client, cache = s3.client(), tmp_path / "cache"
    client.create_bucket(Bucket="artists")
    keys = {"mosaic": "loras/mosaic.safetensors", "neon": "loras/neon.safetensors"}
    for name, key in keys.items():
        client.upload_file(str(packaged() / f"pocket-loras/{name}.safetensors"), "artists", key)
    client.put_object(Bucket="artists", Key="loras/notes.txt", Body=b"no LoRA")
    place = {"endpoint_url": s3.endpoint_url, "region": "us-east-1"}
    store = make_s3_store("results", **place, access_key_id="test", secret_access_key="test")
    how = {"client": client, "store": store, "cache": cache}
    panel = Playground(painter, partial(bucket_loras, "artists", "loras/", **how), folder=tmp_path)
    assert panel.wait(60) and list(panel.context.session.library.usable) == list(keys)
    panel.compare.axes.x.name.value = "lora"
    assert panel.compare.axes.estimate.value.startswith("2 pictures") and not cache.exists()
    panel.controls.style.lora.value = "neon"
    assert generate(panel).job.lora_model_url == "s3://artists/loras/neon.safetensors"
    assert [path.read_bytes() for path in cache.iterdir()] == [
        (packaged() / "pocket-loras/neon.safetensors").read_bytes()
    ]
    client.put_object(Bucket="artists", Key=keys["neon"], Body=b"another style")
    panel.controls.style.refresh.click()
    assert panel.wait(30)
    generate(panel)
    assert painter.loras[-1][0].read_bytes() == b"another style"


# Production


def test_dead_letter_is_opened_and_redriven(
    panel: Playground, rabbit: Broker, order: dict[str, Any]
) -> None:
    queue, production = "panel", panel.history.production
    panel.history.broker_panel.broker.value, panel.history.broker_panel.queue.value = (
        rabbit.url,
        queue,
    )
    bodies = [json.dumps(order | {"seed": seed}).encode() for seed in (-5, 7)]
    for body in bodies:
        publish_job(body, url=rabbit.url, queue_name=dead_letters(queue))
    production.dead.look.click()
    assert (
        panel.wait(60)
        and panel.status.text == "2 dead letters."
        and len(production.dead.letters.options) == 2
    )
    production.dead.letters.value = 1
    production.dead.open.click()
    assert panel.controls.seed.number.value == "7"
    assert "lora" in panel.status.text  # s3://models/… is not listed here
    production.dead.redrive.click()
    assert panel.wait(60) and "1" in panel.status.text and len(production.dead.letters.options) == 1
    assert rabbit.queue_state(queue) == (1, 0)


def test_job_goes_to_the_queue_and_its_webhooks_come_back(
    pocket_panel: Playground, rabbit: Broker, engine: Engine, tmp_path: Path
) -> None:
    broker_panel, queue = pocket_panel.history.broker_panel, "panel-sends"
    broker_panel.broker.value, broker_panel.queue.value = rabbit.url, queue
    pocket_panel.history.production.send.click()
    assert pocket_panel.wait(60)
    (body,) = look_into(rabbit.url, queue_name=queue)
    assert pocket_panel.status.text == f"Sent: {json.loads(body)['generation_id']}."
    origin = broker_panel.outbox().webhook_url
    parts = Parts(engine.draw, FolderStore(tmp_path / "bucket"), (origin,), "t0ken")
    outcome = handle_generation_task(body, parts)
    assert len(broker_panel.outbox().receiver.wait_for(1, "complete")) == 1
    assert outcome.result_url in broker_panel.events.value and origin in broker_panel.events.value
    broker_panel.close()


def sent(panel: Playground, rabbit: Broker, queue: str) -> GenerationJob:
    """Press Send job, and take from the queue what it got."""
    panel.history.broker_panel.broker.value, panel.history.broker_panel.queue.value = (
        rabbit.url,
        queue,
    )
    panel.history.production.send.click()
    assert panel.wait(60)
    ((_, body),) = rabbit.take_all(queue)
    return parse_job(body)


def test_the_controls_are_sent(panel: Playground, rabbit: Broker) -> None:
    """A tile's job while nothing is changed; a dead letter that is mended, as it is mended."""
    queue, production, fields = "panel-mends", panel.history.production, fill_in(panel).model_dump()
    hand = {"image_url": "s3://artists/a/hand.png"}
    panel.open(json.dumps(fields | {"signature": hand}).encode())
    drawn = generate(panel).job
    panel.open(json.dumps(fields | {"seed": 1, "extra_loras": []}).encode())
    tile = panel.history.gallery.tiles[0].button
    tile.click()
    job = sent(panel, rabbit, queue)
    assert make_job(job.model_dump() | {"webhook_url": drawn.webhook_url}) == drawn
    letter = json.dumps(fields | {"prompt_tags": ["mended"], "seed": -5}).encode()
    publish_job(letter, url=rabbit.url, queue_name=dead_letters(queue))
    production.dead.look.click()
    assert panel.wait(60)
    production.dead.letters.value = 0
    production.dead.open.click()
    assert panel.history.chosen.picture_view.shown is None
    panel.controls.seed.number.value = "5"
    job = sent(panel, rabbit, queue)
    assert (job.prompt, job.seed) == ("mended", 5)
    tile.click()
    panel.controls.seed.number.value = "6"
    assert sent(panel, rabbit, queue).seed == 6
    panel.history.broker_panel.close()


@pytest.mark.parametrize("way", ["preset", "upload", "open"])
def test_a_picture_is_put_away(panel: Playground, way: str) -> None:
    """Once the controls are set from elsewhere, no button speaks of the picture before."""
    files, chosen, export = panel.history.files, panel.history.chosen, panel.history.export
    generate(panel)
    panel.controls.seed.number.value, files.name.value = "9", "nine"
    job = panel.job()
    files.save.click()
    panel.history.gallery.tiles[0].button.click()
    export.json.click()
    if way == "preset":
        files.load.click()
    elif way == "upload":
        facts = {"name": "a", "type": "", "size": 1, "last_modified": datetime.now()}
        files.upload.value = ({**facts, "content": memoryview(as_json(job).encode())},)
    else:
        panel.open(as_json(job).encode())
    assert (
        chosen.picture_view.shown is None
        and chosen.picture_view.reuse.disabled
        and not export.code.texts
    )
    assert chosen.job() == panel.job() == job
    export.jpeg.click()
    assert "choose a picture first" in panel.status.text


def test_no_less_is_sent_in_silence(panel: Playground, rabbit: Broker) -> None:
    """A job of three LoRAs: the panel, which has room for two, first says that one is missing."""
    queue, loras = "panel-lacks", panel.context.session.library.loras
    extras = [{"url": loras[name].url} for name in ("neon", "mosaic")]
    panel.open(json.dumps(panel.job().model_dump() | {"extra_loras": extras}).encode())
    panel.history.broker_panel.broker.value, panel.history.broker_panel.queue.value = (
        rabbit.url,
        queue,
    )
    panel.history.production.send.click()
    assert panel.wait(60) and "only the first is shown" in panel.status.text
    assert "sg-error" in panel.status.line.value and not rabbit.take_all(queue)
    assert [extra.url for extra in sent(panel, rabbit, queue).extra_loras] == [loras["neon"].url]
    panel.history.broker_panel.close()


def test_a_job_can_be_sent_again(panel: Playground, rabbit: Broker, tmp_path: Path) -> None:
    """After the artist's file has changed, a worker that remembers ids draws the job anew."""
    broker_panel, queue = panel.history.broker_panel, "panel-sends-again"
    broker_panel.broker.value, broker_panel.queue.value = rabbit.url, queue
    drawn: list[GenerationJob] = []

    def draw(job: GenerationJob, _: Path, *, on_step: Any) -> Image.Image:
        drawn.append(job)
        on_step(job.total_steps)
        return Image.new("RGB", job.resolution, "red")

    origins = (broker_panel.outbox().webhook_url,)
    parts = Parts(draw, FolderStore(tmp_path / "bucket"), origins, "t0ken", idempotent=True)
    for _ in range(2):
        panel.history.production.send.click()
    assert panel.wait(60)
    urls = [
        handle_generation_task(body, parts).result_url
        for body in look_into(rabbit.url, queue_name=queue)
    ]
    broker_panel.close()
    assert len(drawn) == 2 and len(set(urls)) == 2


def test_webhooks_come_back_to_a_known_port(painter: Painter, loras: Path, tmp_path: Path) -> None:
    """The port that an operator allows; another one, visibly, if it is taken."""
    with WebhookReceiver() as other:
        port, listing = other.server_port, partial(folder_loras, loras)
        panel = Playground(painter, listing, folder=tmp_path, webhook_port=port)
        broker_panel = panel.history.broker_panel
        assert broker_panel.outbox().webhook_url != other.url
        assert f"port {port} is taken" in broker_panel.events.value
        assert broker_panel.outbox().webhook_url in broker_panel.events.value
        broker_panel.close()
    assert broker_panel.outbox().webhook_url == other.url
    broker_panel.close()


def test_broker_that_is_away_is_reported(panel: Playground) -> None:
    panel.history.broker_panel.broker.value = "amqp://127.0.0.1:1"
    panel.history.production.dead.look.click()
    assert panel.wait(60) and "sg-error" in panel.status.line.value


@pytest.mark.parametrize(
    "broker, webhook_url",
    [("amqp://broker.example.com", None), ("amqp://127.0.0.1:1", "https://tunnel.example.com")],
)
def test_a_file_is_not_sent_elsewhere(
    painter: Painter, loras: Path, tmp_path: Path, broker: str, webhook_url: str | None
) -> None:
    """A worker elsewhere can't read it: by its broker, or by the way back that it needs."""
    panel = Playground(
        painter,
        partial(folder_loras, loras),
        folder=tmp_path,
        broker=broker,
        webhook_port=0,
        webhook_url=webhook_url,
    )
    panel.history.production.send.click()
    assert panel.wait(60) and "a file of this machine" in panel.status.text
    assert panel.history.broker_panel.outbox().webhook_url.startswith(
        webhook_url or "http://127.0.0.1:"
    )
    panel.history.broker_panel.close()


def test_a_silent_host_freezes_nothing(painter: Painter, loras: Path, tmp_path: Path) -> None:
    """A broker that takes connections and never answers, then a bucket that does so."""
    answered = threading.Event()
    answered.set()

    def listing() -> list[LoraFile]:
        assert answered.wait(60)
        return folder_loras(loras)

    panel = Playground(painter, listing, folder=tmp_path, webhook_port=0)
    production = panel.history.production
    with socket.create_server(("127.0.0.1", 0)) as silent:
        panel.history.broker_panel.broker.value = f"amqp://127.0.0.1:{silent.getsockname()[1]}"
        for button in (production.send, production.dead.look):
            button.click()
        assert not panel.parts.network.wait(0)
        panel.toolbar.generate.click()
        assert (
            panel.parts.runner.wait(60)
            and len(painter.jobs) == 1
            and not panel.parts.network.wait(0)
        )
    assert panel.parts.network.wait(120) and "sg-error" in panel.status.line.value
    answered.clear()
    panel.controls.style.refresh.click()
    assert not panel.wait(0)
    answered.set()
    assert panel.wait(60)
    panel.history.broker_panel.close()


@pytest.mark.parametrize("body", [[1], "text", None, {}, {"progress": 5}])
def test_nonsense_from_outside_is_no_webhook(panel: Playground, body: Any) -> None:
    broker_panel = panel.history.broker_panel
    outbox = broker_panel.outbox()
    url = f"{outbox.webhook_url}/api/webhooks/inference/progress"
    status = requests.patch(url, json.dumps(body), timeout=30).status_code
    assert status == (200 if isinstance(body, dict) else 400)
    assert webhooks_of(panel.job(), outbox.receiver.received) == []
    broker_panel.close()


def test_library_lists_nothing_twice(loras: Path) -> None:
    library = Library(partial(folder_loras, loras))
    library.refresh()
    url = library.loras["neon"].url
    assert library.register(url, 7) == library.register(url, 7)
    library.refresh()
    assert list(library.usable) == ["hatching", "mosaic", "neon", "watercolour", "7: neon"]
