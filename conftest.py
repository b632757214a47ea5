"""Make nbval honour nbdev's directives and its cleaned execution counts."""

import re
from typing import Any

_NOT_RUN = re.compile(r"^#\s?\|\s*(eval:\s*false|slow|gpu)\b", re.MULTILINE)


def pytest_itemcollected(item: Any) -> None:
    """Skip cells that nbdev would not run, and give cleaned cells a count that nbval accepts.

    ``nbdev_clean`` nulls execution counts; nbval fails every such cell that has stored output.
    """
    cell = getattr(item, "cell", None)
    if cell is None:
        return
    if _NOT_RUN.search(cell.source):
        item.options["skip"] = True
    if cell.get("outputs") and cell.get("execution_count") is None:
        cell.execution_count = 0
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = 0
