"""How much of each room the tests pass through, as a Markdown table.

Usage: ``coverage json``, then ``python tools/covered.py``; `make coverage` runs the tests before.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "out/coverage/report.json"


def room_of(module: str) -> str:
    """The room of a module by its path; what lies in no folder is ``ground``."""
    parts = PurePath(module).parts
    return parts[1] if len(parts) > 2 else "ground"


def table(files: Mapping[str, Any]) -> str:
    """A row for each room, then for all, from the files of coverage's report.

    Args:
        files: For each module's path, its ``summary``.
    """
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for path, report in sorted(files.items()):
        summary = report["summary"]
        for name in (room_of(path), "all"):
            row = counts[name]
            row[0] += 1
            row[1] += summary["num_statements"]
            row[2] += summary["missing_lines"]
    rows = sorted(counts.items(), key=lambda item: (item[0] == "all", item[0]))
    lines = ["| room | modules | statements | missed | covered |", "|---|---|---|---|---|"]
    for name, (modules, statements, missed) in rows:
        share = 1 - missed / max(1, statements)
        lines.append(f"| {name} | {modules} | {statements} | {missed} | {share:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(REPORT.read_text(encoding="utf-8"))["files"]))
