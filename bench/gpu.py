"""Everything that only a GPU can tell, in one command that writes each figure as it comes.

Usage: ``make gpu``, or ``python bench/gpu.py [--minutes M] [--only STAGE ...] [--results FOLDER]``.
The stages of `gpu_stages` run in order of value, each in its time; what the same commit has done
before on the same card is not done again. ``--dry-run`` runs every line in small on a CPU.
``--table`` shows what the stored results say of the goals, and measures nothing. ``--train`` trains
the pocket model for longer than two CPU cores allow.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gpu_table import table
from stages import Results, Stage, run
from stored import RESULTS

ROOT = Path(__file__).parent.parent
DRY_SECONDS = 300.0
"""A stage's time in a dry run, whatever a card gets."""
FileOf = Callable[[dict[str, Any]], Path]


def file_of(facts: dict[str, Any], folder: Path) -> Path:
    """A card's results."""
    name = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    return folder / f"gpu-{name}.json"


def work(stages: Sequence[Stage], dry_run: bool, minutes: float, file: FileOf) -> Results:
    """Run stages on the card; in small, on the CPU, for a dry run."""
    from gpu_stages import FULL, SMALL, GpuBench

    device, sizes = ("cpu", SMALL) if dry_run else ("cuda", FULL)
    if dry_run:  # a CPU may be busy
        stages = [replace(stage, seconds=DRY_SECONDS) for stage in stages]
    with tempfile.TemporaryDirectory() as scratch:
        return run(stages, partial(GpuBench, device, sizes, Path(scratch)), file, minutes)


def measure(stages: Sequence[Stage], dry_run: bool, minutes: float, folder: Path) -> bool:
    """Run stages and show the table; tells whether all are done."""
    results = work(stages, dry_run, minutes, partial(file_of, folder=folder))
    print(f"\n{table(folder)}\n\n{results.path}")
    return all(results.has(stage.name) for stage in stages)


def train(stages: Sequence[Stage], dry_run: bool, minutes: float, folder: Path) -> bool:
    """Train, judge, pack; tells whether training came to its end."""
    from gpu_train import archive

    results = work(stages, dry_run, minutes, lambda _: folder / "pocket-gpu.json")
    if not results.has("train"):
        return False
    print(f"\n{archive(folder)}\n{results.path}")
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0 if all was done, 1 if not, 2 for wrong arguments or a machine without CUDA.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="for everything; default 8")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these alone")
    parser.add_argument("--results", type=Path, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="every line, in small, on a CPU")
    parser.add_argument("--table", action="store_true", help="show the goals; measure nothing")
    parser.add_argument("--train", action="store_true", help="train the pocket model for longer")
    given = parser.parse_args(arguments)
    folder = given.results or (ROOT / "out/gpu" if given.dry_run else RESULTS)
    if given.table:
        print(table(folder))
        return 0
    import torch

    if not given.dry_run and not torch.cuda.is_available():
        print("no CUDA device here; --dry-run tries everything on the CPU", file=sys.stderr)
        return 2
    if given.train:
        import gpu_train

        return 0 if train(gpu_train.STAGES, given.dry_run, given.minutes, folder) else 1
    from gpu_stages import STAGES

    names = {stage.name for stage in STAGES}
    if unknown := set(given.only or ()) - names:
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    chosen = tuple(stage for stage in STAGES if not given.only or stage.name in given.only)
    return 0 if measure(chosen, given.dry_run, given.minutes, folder) else 1


if __name__ == "__main__":
    sys.exit(main())
