"""Grids, kept jobs and estimates, with a painter in place of a model: everything in its place."""

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import stylegen.pipeline
import stylegen.pipeline.engine
from stylegen.job import GenerationJob, parse_job
from stylegen.playground.cells import find_cell, save_cell
from stylegen.playground.code import as_python
from stylegen.playground.difference import Difference
from stylegen.playground.drawing import Callbacks, Failure, Picture, Stopped, draw_all
from stylegen.playground.estimate import SpeedEstimate
from stylegen.playground.files import Presets, as_json, open_job, save_picture
from stylegen.playground.grid import Grid, grid, job_table
from stylegen.playground.history import History, labels
from stylegen.playground.library import LoraFile
from stylegen.playground.recipe import make_job, with_changes
from stylegen.playground.runner import Progress
from stylegen.signature import choose_font

LORAS = {
    each: LoraFile(each, f"s3://models/{each}", Path(each)) for each in ("neon", "mosaic", "ink")
}
INK, PAPER, GREY = (32, 33, 36), (255, 255, 255), (213, 215, 218)


def ordered(**fields: Any) -> GenerationJob:
    """A small job."""
    common = {
        "style_id": "neon",
        "lora_model_url": "s3://models/neon",
        "prompt_tags": ["star"],
        "artist_name": "Artist",
        "webhook_url": "http://localhost",
        "num_inference_steps": 20,
    }
    return make_job(common | fields)


def colour(job: GenerationJob) -> tuple[int, int, int]:
    """A colour of its own for each cell."""
    lora = [lora.url for lora in LORAS.values()].index(job.lora_model_url)
    return (40 + 80 * lora, 20 + 30 * job.seed, round(20 * job.guidance_scale))


def paint(job: GenerationJob, _: Path, *, on_step: Any) -> Image.Image:
    """A picture in the job's colour."""
    on_step(job.total_steps)
    return Image.new("RGB", job.resolution, colour(job))


class Backwards:
    """A painter whose last picture is ready first: each waits for the one after it."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.after = dict(itertools.pairwise(seeds))
        self.done = {seed: threading.Event() for seed in seeds}

    def __call__(self, job: GenerationJob, lora: Path, *, on_step: Any) -> Image.Image:
        if job.seed in self.after:
            assert self.done[self.after[job.seed]].wait(30)
        return paint(job, lora, on_step=on_step)

    def heard(self, _: int, result: Any) -> None:
        """A picture has been taken; `Callbacks`' ``on_done``."""
        self.done[result.job.seed].set()


# In the right place


def box_of(sheet: Image.Image, wanted: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a colour's rectangle, which it fills."""
    pixels = np.asarray(sheet)
    rows, columns = np.nonzero((pixels == wanted).all(axis=2))
    assert len(rows), f"no cell is {wanted}"
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert len(rows) == (right - left) * (bottom - top)
    return int(left), int(top), int(right), int(bottom)


def written(text: str, width: int, height: int) -> np.ndarray:
    """A caption, as Pillow writes it into the middle of a box."""
    image = Image.new("RGB", (width, height), PAPER)
    font = ImageFont.truetype(str(choose_font(text)), 15)
    ImageDraw.Draw(image).text((width / 2, height / 2), text, INK, font, anchor="mm")
    return np.asarray(image)


AXES: dict[str, tuple[Any, ...]] = {
    "seed": (3, 0, 5),
    "lora": ("neon", "ink"),
    "guidance": (7.5, 1.0),
}
"""Values in no order but their own."""


@pytest.mark.parametrize("names", list(itertools.permutations(AXES, 3)), ids="-".join)
def test_pictures_and_captions_are_in_their_places(names: tuple[str, ...]) -> None:
    """Columns by the first axis, rows by the second, blocks by the third; each says its value."""
    axes = {name: AXES[name] for name in names}
    drawn = grid(ordered(), axes, generate=paint, loras=LORAS)
    sheet, (columns, rows, blocks) = drawn.sheet(96), axes.values()
    for z, y, x in itertools.product(*(range(len(v)) for v in (blocks, rows, columns))):
        changes = dict(zip(names, (columns[x], rows[y], blocks[z]), strict=True))
        left, top, right, bottom = box_of(sheet, colour(with_changes(ordered(), changes, LORAS)))
        block = 60 + 102 * len(rows)
        assert (left, top) == (110 + 102 * x, block * z + 60 + 102 * y)
        assert (right - left, bottom - top) == (96, 96)

    def says(name: str, value: Any) -> str:
        return value if name == "lora" else f"{name} {value}"

    def cut(*box: int) -> np.ndarray:
        return np.asarray(sheet.crop(box))

    for z, block_value in enumerate(blocks):
        top = z * (60 + 102 * len(rows))
        head = written(says(names[2], block_value), sheet.width, 30)
        assert np.array_equal(cut(0, top, sheet.width, top + 30), head)
        for x, value in enumerate(columns):
            left = 110 + 102 * x
            expected = written(says(names[0], value), 96, 30)
            assert np.array_equal(cut(left, top + 30, left + 96, top + 60), expected)
        for y, value in enumerate(rows):
            place = top + 60 + 102 * y
            expected = written(says(names[1], value), 110, 102)
            assert np.array_equal(cut(0, place, 110, place + 102), expected)


def test_a_missing_cell_is_grey_in_its_place() -> None:
    """The others do not move up."""
    plan = Grid(ordered(), {"seed": [0, 1, 2]}, LORAS)
    for key in ((0,), (2,)):
        plan.results.put(key, Picture(plan.jobs[key], paint(plan.jobs[key], Path(), on_step=print)))
    sheet = plan.sheet(64)
    lefts = [box_of(sheet, shade)[0] for shade in ((40, 20, 150), GREY, (40, 80, 150))]
    assert lefts == [6, 76, 146]
    assert [row["state"] for row in job_table(plan)] == ["drawn", "missing", "drawn"]


def test_whoever_is_ready_first_keeps_its_place() -> None:
    """Pictures that come in the order 2, 1, 0 are returned, kept and reported as 0, 1, 2."""
    painter = Backwards([0, 1, 2])
    reported: list[tuple[int, int]] = []

    def on_done(index: int, result: Any) -> None:
        reported.append((index, result.job.seed))
        painter.heard(index, result)

    tasks = [(ordered(seed=seed), LORAS["neon"]) for seed in range(3)]
    results = draw_all(tasks, painter, batch=3, callbacks=Callbacks(on_done=on_done))
    assert [result.job.seed for result in results] == [0, 1, 2]
    assert reported == [(2, 2), (1, 1), (0, 0)]
    painter = Backwards([0, 1, 2])
    callbacks = Callbacks(on_done=painter.heard)
    drawn = grid(ordered(), {"seed": [0, 1, 2]}, generate=painter, loras=LORAS, callbacks=callbacks)
    assert list(drawn.cells) == [(0,), (1,), (2,)]
    assert [cell.job.seed for cell in drawn.cells.values()] == [0, 1, 2]
    for (seed,), cell in drawn.cells.items():
        assert cell.image.getpixel((0, 0)) == colour(ordered(seed=seed))


def test_a_tables_rows_are_their_cells() -> None:
    """Each row's place is its job's, and its state its own."""
    plan = Grid(ordered(), {"seed": [4, 1], "lora": ["ink", "neon"]}, LORAS)
    plan.results.put((4, "neon"), Picture(plan.jobs[4, "neon"], Image.new("RGB", (8, 8))))
    plan.results.put((1, "ink"), Failure(plan.jobs[1, "ink"], ValueError("no ink")))
    plan.results.put((1, "neon"), Failure(plan.jobs[1, "neon"], Stopped()))
    rows = job_table(plan)
    assert [(row["seed"], row["lora"]) for row in rows] == [
        (row["job"]["seed"], row["job"]["style_id"]) for row in rows
    ]
    assert [(row["seed"], row["lora"], row["state"]) for row in rows] == [
        (4, "ink", "missing"),
        (4, "neon", "drawn"),
        (1, "ink", "failed: no ink"),
        (1, "neon", "missing"),
    ]


def test_a_difference_is_first_then_second() -> None:
    """Its sheet, its fields, and how much of it there is."""
    one, two = Image.new("RGB", (8, 8), (10, 0, 0)), Image.new("RGB", (8, 8), (14, 0, 0))
    two.paste((10, 0, 0), (0, 0, 8, 4))
    pair = Difference(Picture(ordered(seed=1), one), Picture(ordered(seed=0), two))
    sheet = np.asarray(pair.sheet(8))
    assert sheet.shape == (8, 3 * 8 + 2 * 6, 3)
    assert sheet[7, [0, 14, 28], 0].tolist() == [10, 14, 32]
    assert sheet[0, [0, 14, 28], 0].tolist() == [10, 10, 0]
    assert pair.fields == {"seed": (1, 0)}
    assert (pair.changed, pair.mean) == (0.5, pytest.approx(2 / 3))


# Nothing falsy is lost

FALSY: list[dict[str, Any]] = [
    {"seed": 0},
    {"style_id": 0},
    {"guidance_scale": 0.0},
    {"lora_scale": 0.0},
    {"lora_scale": -0.5},
    {"negative_prompt": "0"},
    {"prompt_tags": ["0"]},
    {"extra_loras": [{"url": "s3://models/mosaic", "scale": 0.0}]},
    {
        "extra_loras": [
            {"url": "s3://models/mosaic", "scale": -1.0},
            {"url": "s3://models/ink", "scale": 0.5},
        ]
    },
    {"signature": {"opacity": 0}},
    {"seed": 0, "guidance_scale": 0.0, "lora_scale": 0.0, "style_id": 0},
]
"""Fields whose values count as false, or are next to such, and are not the defaults."""
EVERYTHING = {
    "aspect_ratio": "1:2",
    "seed": 2**63 - 1,
    "negative_prompt": "red 'quoted' \\ \"twice\"",
    "num_inference_steps": 1,
    "guidance_scale": 0.5,
    "scheduler": "euler",
    "lora_scale": 0.25,
    "prompt_syntax": "compel",
    "speed_profile": "guidance_interval",
}
"""Every field that decides the picture, with a value that is not its default."""


def as_preset(job: GenerationJob, folder: Path) -> Any:
    """Saved as the second of two presets."""
    presets = Presets(folder)
    presets.save("another", ordered(seed=77))
    presets.save("mine", job)
    assert presets.names() == ["another", "mine"]
    return presets.load("mine")


def as_jpeg(job: GenerationJob, folder: Path) -> Any:
    """Saved as a JPEG, whose label holds no addresses of this machine."""
    path = save_picture(Picture(job, Image.new("RGB", (8, 8))), folder / "a.jpg")
    return {"webhook_url": job.webhook_url, **open_job(path)}


def as_cell(job: GenerationJob, folder: Path) -> Any:
    """Kept as a cell of a grid."""
    lora = LoraFile("neon", job.lora_model_url, folder / "neon")
    lora.path.write_bytes(b"neon")
    path = save_cell(Picture(job, Image.new("RGB", (8, 8))), [lora], folder)
    assert (picture := find_cell(job, [lora], folder)) and picture.job == job
    return open_job(path)


def as_history(job: GenerationJob, folder: Path) -> Any:
    """On the history of the next kernel."""
    lora = LoraFile("neon", job.lora_model_url, folder / "neon")
    lora.path.write_bytes(b"neon")
    History(folder / "history").add(Picture(job, Image.new("RGB", (8, 8))), [lora])
    (picture,) = History(folder / "history").pictures
    return picture.job.model_dump(mode="json")


def as_message(job: GenerationJob, _: Path) -> Any:
    """The text that a worker is given."""
    return parse_job(as_json(job).encode()).model_dump(mode="json")


@pytest.mark.parametrize("fields", [*FALSY, EVERYTHING], ids=str)
@pytest.mark.parametrize("way", [as_preset, as_jpeg, as_cell, as_history, as_message])
def test_a_job_comes_back_whole(
    tmp_path: Path, way: Callable[[GenerationJob, Path], Any], fields: dict[str, Any]
) -> None:
    """Whatever it is kept in, a zero stays a zero."""
    job = ordered(**fields)
    back = way(job, tmp_path)
    assert {name: back[name] for name in fields} == {
        name: value for name, value in job.model_dump(mode="json").items() if name in fields
    }
    assert make_job(back) == job


@pytest.mark.parametrize("fields", [*FALSY, EVERYTHING], ids=str)
def test_the_code_says_all_that_decides_the_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """The script is run, with an engine that only looks at the job it is given."""
    drawings: list[tuple[GenerationJob, str, list[str]]] = []

    class Recorder:
        """In place of an `Engine`."""

        def __init__(self, model: str) -> None:
            assert model == "the model"

        def draw(self, job: GenerationJob, lora: Any, *, extra_loras: Any = (), **_: Any) -> None:
            """Note what would be drawn."""
            drawings.append((job, str(lora), list(extra_loras)))

    monkeypatch.setattr(stylegen.pipeline.engine, "Engine", Recorder)
    monkeypatch.setattr(stylegen.pipeline, "load_pipeline", lambda model: model)
    job = ordered(**fields)
    extras = [tmp_path / f"{n}.safetensors" for n in range(len(job.extra_loras))]
    exec(
        as_python(job, tmp_path / "a.safetensors", "the model", extras), {}
    )  # pylint: disable=W0122
    ((drawn, lora, files),) = drawings
    assert lora == str(tmp_path / "a.safetensors") and files == [str(path) for path in extras]
    decides = set(EVERYTHING) | {"style_id", "prompt_tags", "extra_loras"}
    assert decides | {"generation_id", "lora_model_url", "artist_name", "webhook_url"} | {
        "signature"
    } == set(GenerationJob.model_fields)
    assert drawn.model_dump(include=decides) == job.model_dump(include=decides)


def test_a_history_is_newest_first(tmp_path: Path) -> None:
    """In this kernel and in the next; what a line says is the picture under its name."""
    lora = LoraFile("neon", "s3://models/neon", tmp_path / "neon")
    lora.path.write_bytes(b"neon")
    history = History(tmp_path / "history", limit=3)
    for number, seed in enumerate((5, 0, 7, 2)):
        job = ordered(seed=seed)
        history.add(Picture(job, Image.new("RGB", (8, 8), colour(job))), [lora])
        path = tmp_path / "history" / next(iter(history.by_name))
        os.utime(path, (number, number))  # they are written faster than a file's time moves
    again = History(tmp_path / "history", limit=3)
    for each in (history, again):
        assert [picture.job.seed for picture in each.pictures] == [2, 7, 0]
        for text, name in labels(each.by_name):
            picture = each.by_name[name]
            assert f"seed {picture.job.seed}," in text
            assert picture.image.getpixel((0, 0)) == colour(picture.job)


# How long it takes


@pytest.mark.parametrize(
    "fields, seconds",
    [
        ({}, 10.0),
        ({"num_inference_steps": 60}, 30.0),
        ({"num_inference_steps": 1}, 0.5),
        ({"aspect_ratio": "2:2"}, 22.5),
        ({"aspect_ratio": "1:2"}, 20.0),
        ({"guidance_scale": 1.0}, 5.0),
        ({"guidance_scale": 0.0}, 5.0),
        ({"guidance_scale": 1.5}, 10.0),
        ({"speed_profile": "ays", "num_inference_steps": 60}, 5.0),
        ({"aspect_ratio": "2:2", "num_inference_steps": 30, "guidance_scale": 1.0}, 16.875),
        ({"seed": 0, "lora_scale": 0.0}, 10.0),
    ],
    ids=str,
)
def test_time_is_in_proportion(fields: dict[str, Any], seconds: float) -> None:
    """To pixels, steps and rows of the UNet, of one picture that took ten seconds."""
    speed = SpeedEstimate()
    speed.add([ordered()], 10.0)
    assert speed.seconds([ordered(**fields)]) == pytest.approx(seconds)
    assert speed.seconds([ordered(**fields)] * 7) == pytest.approx(7 * seconds)
    back = SpeedEstimate()
    back.add([ordered(**fields)] * 2, 2 * seconds)
    assert back.seconds([ordered()]) == pytest.approx(10.0)


def test_what_was_drawn_last_counts_most() -> None:
    """Each request counts twice as much as the one before it."""
    speed = SpeedEstimate()
    assert speed.seconds([ordered()]) is None
    for number, seconds in enumerate((8.0, 2.0, 1.0)):
        speed.add([ordered()] * 2, seconds)
        # 4; (4 + 2·1) / 3; (4 + 2·1 + 4·0.5) / 7
        assert speed.seconds([ordered()]) == pytest.approx([4.0, 2.0, 8 / 7][number])


def test_an_estimate_in_words() -> None:
    """For all together, and for each."""
    speed = SpeedEstimate()
    assert speed.describe([ordered()]) == "1 picture; time unknown until one is drawn"
    speed.add([ordered()] * 3, 30.0)
    assert speed.describe([ordered()]) == "1 picture, about 10 s (10.0 s each)"
    assert speed.describe([ordered()] * 4) == "4 pictures, about 40 s (10.0 s each)"
    unlike = [ordered(), ordered(num_inference_steps=40)]
    assert speed.describe(unlike) == "2 pictures, about 30 s (15.0 s each)"


def test_a_bar_says_how_long_it_will_take() -> None:
    """Of the steps of all pictures: what they took so far, times those left, by those taken."""
    now = [100.0]
    progress = Progress(lambda: now[0])
    progress.begin([ordered(num_inference_steps=10), ordered(speed_profile="ays")])
    assert progress.gauge.max == 20
    for seconds, index, step, text in (
        (108.0, 0, 4, "step 4/20, 32 s left"),
        (109.0, 1, 2, "step 6/20, 21 s left"),
        (109.05, 0, 5, "step 6/20, 21 s left"),  # too soon to be shown
        (109.2, 0, 6, "step 8/20, 14 s left"),
        (140.0, 0, 10, "step 12/20, 27 s left"),
        (140.01, 1, 10, "step 20/20, 0 s left"),  # the last one always is
    ):
        now[0] = seconds
        progress.step(index, step)
        assert progress.text.value == text
    now[0] = 142.25
    assert progress.end() == 42.25 and progress.text.value == "42.2 s"
