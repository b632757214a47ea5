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
from stages import Results, Stage, call, run
from stored import RESULTS

ROOT = Path(__file__).parent.parent
DRY_SECONDS = 300.0
"""A stage's time in a dry run, whatever a card gets."""
STAGES = (
    Stage("peaks", 20, "gpu_stages:peaks"),
    Stage("peers", 80, "gpu_stages:peers"),
    Stage("eager", 70, "gpu_stages:eager"),
    Stage("end to end", 45, "gpu_stages:end_to_end"),
    Stage("change", 30, "gpu_stages:change"),
    Stage("precision", 30, "gpu_stages:precision"),
    Stage("ends", 30, "gpu_stages:ends"),
    Stage("correctness", 90, "gpu_stages:correctness"),
    Stage("compiled", 180, "gpu_stages:compiled"),
    Stage("tuned", 150, "gpu_stages:tuned"),
    Stage("cold", 70, "gpu_stages:cold"),
    Stage("notebooks", 40, "gpu_stages:notebooks"),
    Stage("locon", 20, "gpu_stages:locon"),
    Stage("cuda graphs", 120, "gpu_stages:cuda_graphs"),
    Stage("end to end, compiled", 240, "gpu_stages:end_to_end_compiled"),
)
"""In order of value for their time: what must compile comes late, since it may take it all."""
TRAINING = (Stage("train", 6 * 3600, "gpu_train:train"), Stage("judge", 900, "gpu_train:judge"))
FileOf = Callable[[dict[str, Any]], Path]


def file_of(facts: dict[str, Any], folder: Path) -> Path:
    """A card's results."""
    name = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    return folder / f"gpu-{name}.json"


def work(stages: Sequence[Stage], dry_run: bool, minutes: float, file: FileOf) -> Results:
    """Run stages on the card; in small, on the CPU, for a dry run."""
    if dry_run:  # a CPU may be busy
        stages = [replace(stage, seconds=DRY_SECONDS) for stage in stages]
    with tempfile.TemporaryDirectory() as scratch:
        bench = partial(call, "gpu_stages:open_bench", dry_run, Path(scratch))
        return run(stages, bench, file, minutes)


def measure(stages: Sequence[Stage], dry_run: bool, minutes: float, folder: Path) -> bool:
    """Run stages and show the table; tells whether all are done."""
    results = work(stages, dry_run, minutes, partial(file_of, folder=folder))
    print(f"\n{table(folder)}\n\n{results.path}")
    return all(results.has(stage.name) for stage in stages)


def train(stages: Sequence[Stage], dry_run: bool, minutes: float, folder: Path) -> bool:
    """Train, judge, pack; tells whether training came to its end."""
    results = work(stages, dry_run, minutes, lambda _: folder / "pocket-gpu.json")
    if not results.has("train"):
        return False
    print(f"\n{call('gpu_train:archive', folder)}\n{results.path}")
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0 if all was done; 1 if not, or without a card; 2 for wrong arguments; 130 for Ctrl-C.
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
    if given.train:
        return 0 if train(TRAINING, given.dry_run, given.minutes, folder) else 1
    names = {stage.name for stage in STAGES}
    if unknown := set(given.only or ()) - names:
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    chosen = tuple(stage for stage in STAGES if not given.only or stage.name in given.only)
    try:
        return 0 if measure(chosen, given.dry_run, given.minutes, folder) else 1
    except KeyboardInterrupt:
        print(f"\nstopped; what was measured is kept\n\n{table(folder)}")
        return 130


if __name__ == "__main__":
    sys.exit(main())
