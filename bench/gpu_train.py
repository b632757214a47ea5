"""The pocket model's longer training on a GPU: `bench/gpu.py --train`.

The recipe is the guide's (`nbs/guides/pocket_model.ipynb`), with more steps; a checkpoint is kept
each minute, and the next run goes on from there. Model and checkpoints lie in ``out/pocket-gpu``,
figures and an archive of the model in the folder of the results.
"""

import os
import shutil
import sys
from pathlib import Path

from gpu_cells import NBS, run
from gpu_stages import GpuBench
from stages import Record

ROOT = Path(__file__).parent.parent
GUIDE = NBS / "guides/pocket_model.ipynb"
MODELS = ROOT / "out/pocket-gpu/models"
BARS = {"colours": 85.0, "shape": 90.0, "style": 95.0}
"""Per cent of a style's pictures in which the judge sees what was asked for."""
MOST_BYTES = 16_000_000
"""Of model and LoRAs together, as they are packaged."""


def train(bench: GpuBench, record: Record) -> None:
    """All cells of the guide, in full on a GPU, in small without one."""
    os.environ["POCKET_TRAINING"] = "gpu" if bench.is_cuda else ""
    models = (GUIDE.parent / run(GUIDE)["models"]).resolve()
    if models != MODELS:
        shutil.copytree(models, MODELS, dirs_exist_ok=True)
    size = sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file())
    record("bytes", size)
    if size > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")


def judge(bench: GpuBench, record: Record) -> None:
    """What the judge sees in styled pictures of combinations that were never trained on."""
    sys.path.insert(0, str(ROOT / "tools"))
    from pocket_report import Task, judge_task

    count, steps = (100, 50) if bench.is_cuda else (2, 2)
    low = []
    for lora in sorted((MODELS / "pocket-loras").glob("*.safetensors")):
        task = Task(str(MODELS / "pocket"), str(lora), lora.stem, steps=steps, count=count)
        seen = judge_task(task, bench.device)
        for name, right in zip(BARS, zip(*seen, strict=True), strict=True):
            share = 100 * sum(right) / count
            record(f"{lora.stem}: {name}, %", share)
            low += [f"{lora.stem}: {name}"] if share < BARS[name] else []
    record("below the bars", low)


def archive(folder: Path) -> Path:
    """Model and LoRAs as one file."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.make_archive(str(folder / "pocket-gpu"), "zip", MODELS))
