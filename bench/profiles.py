"""What the opt-in speed profiles save and what they lose, on the pocket model.

Usage: ``python bench/profiles.py [--pictures N]``. Every profile draws the same scenes from the
same seeds, by turns; the judge tells what the pictures show. Prints a table, writes
``bench/results/profiles.json``.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.pocket import judge, packaged

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
# pylint: disable=wrong-import-position
from pocket_report import Task, order, scenes  # noqa: E402
from stored import store  # noqa: E402

PROFILES = (None, "guidance_interval", "ays")


def main(pictures: int) -> None:
    """Draw, judge, print, write."""
    model, lora = packaged() / "pocket", packaged() / "pocket-loras" / "mosaic.safetensors"
    engine, task = Engine(load_pipeline(str(model), device="cpu")), Task(
        str(model), str(lora), scale=0
    )
    seconds: dict[str, list[float]] = {str(profile): [] for profile in PROFILES}
    colours: dict[str, list[bool]] = {str(profile): [] for profile in PROFILES}
    shapes: dict[str, list[bool]] = {str(profile): [] for profile in PROFILES}
    apart: dict[str, list[float]] = {str(profile): [] for profile in PROFILES}
    for number, scene in enumerate(scenes(0, pictures)):
        job, reference = order(task, scene, seed=2_000_000 + number), None
        for profile in PROFILES:
            started = time.perf_counter()
            picture = engine.draw(job.model_copy(update={"speed_profile": profile}), lora)
            seconds[str(profile)].append(time.perf_counter() - started)
            seen, pixels = judge(picture), np.asarray(picture, dtype=float)
            reference = pixels if reference is None else reference
            colours[str(profile)].append(
                (seen.colour, seen.background) == (scene.colour, scene.background)
            )
            shapes[str(profile)].append(seen.shape == scene.shape)
            apart[str(profile)].append(float(np.abs(pixels - reference).mean()))
    engine.close()
    table = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "colours_right": 100 * float(np.mean(colours[name])),
            "shapes_right": 100 * float(np.mean(shapes[name])),
            "mean_difference": float(np.mean(apart[name])),
        }
        for name in seconds
    }
    print(f"{'profile':20}{'seconds':>9}{'colours %':>11}{'shapes %':>10}{'difference':>12}")
    for name, row in table.items():
        print(f"{name:20}" + "{:9.2f}{:11.1f}{:10.1f}{:12.1f}".format(*row.values()))
    store("profiles", {"pictures": pictures, "steps": 50, "profiles": table}, "torch", "diffusers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60)
    main(parser.parse_args().pictures)
