"""Try random inputs at each border until the time is up, and say how many, and what broke.

Usage: ``python tools/fuzz.py --minutes 20`` (`make fuzz`). Runs the tests by hypothesis, in rounds
of ten times the inputs of `make test`, each with a seed of its own; ends with the first that fails.
"""

import argparse
import random
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTEST = ["-q", "-p", "no:cacheprovider", "-m", "hypothesis", "--hypothesis-show-statistics"]
_TRIED = re.compile(r"- (\d+) passing(?: examples)?, (\d+) failing")
_FAILED = re.compile(r"^FAILED (\S+)(?: - (.*))?$", re.MULTILINE)


def count_tried(report: str) -> int:
    """How many inputs a report of pytest's says were tried, those that were not valid left out."""
    return sum(int(passing) + int(failing) for passing, failing in _TRIED.findall(report))


def failures(report: str) -> list[str]:
    """Each test that a report says failed, with what was raised."""
    return [f"{test}: {error}" for test, error in _FAILED.findall(report)]


def run_round(seed: int, tests: list[str]) -> tuple[str, bool]:
    """A round's report, and whether nothing broke."""
    options = [*PYTEST, "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr, done.returncode == 0


def fuzz(minutes: float, tests: list[str]) -> bool:
    """Run rounds, one at least; returns whether inputs were tried, and none broke anything."""
    tried, until = 0, time.monotonic() + 60 * minutes
    while True:
        seed = random.SystemRandom().getrandbits(32)
        report, is_good = run_round(seed, tests)
        tried += count_tried(report)
        if not is_good:
            print(report)
        found = failures(report)
        print(
            f"seed {seed}: {tried} inputs tried, foreign exceptions {len(found)}", *found, sep="\n"
        )
        if not is_good or time.monotonic() > until:
            return is_good and tried > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no round begins")
    parser.add_argument("tests", nargs="*", default=["tests"], help="files or folders of tests")
    given = parser.parse_args()
    sys.exit(not fuzz(given.minutes, given.tests))
