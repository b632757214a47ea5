"""Make nbval honour nbdev's directives and its cleaned execution counts, and look at pictures."""

import gc
import re
import sys
from base64 import b64decode
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import nbval.kernel
import numpy as np
from PIL import Image

gc.disable()  # until the tests begin: modules that are imported make no garbage
for folder in ("tools", "tests"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

import keeper  # noqa: E402
from forked_kernels import ForkedKernel  # noqa: E402

_NOT_RUN = re.compile(r"^#\s?\|\s*(eval:\s*false|slow|gpu)\b", re.MULTILINE)
_THREAD = "Exception in thread"
"""How Python begins its report of an exception that ended a thread."""
KINDS = ("image/png", "image/jpeg")
MAX_MEAN = 1.0
"""Levels, of 255, that two pictures' channels may differ by on average."""
FAR, MAX_FAR = 32, 0.002
"""Levels that are more than rounding, and the share of pixels that may differ by more."""


nbval.kernel.KernelManager = ForkedKernel


LONGEST_FIRST = ("test_engine.py", "test_docs.py", "test_semantics.py", "test_pocket.py")
"""Files that take minutes; begun last, they would be waited for by processes with nothing to do."""


def pytest_configure(config: Any) -> None:
    """Let all the run's processes and kernels have one broker, should any want one."""
    config.add_cleanup(keeper.hold().close)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Begin with the longest files; all others stay in their order."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """Look for garbage from now on, and never among what was imported."""
    gc.freeze()
    gc.enable()


def pytest_itemcollected(item: Any) -> None:
    """Skip cells that nbdev would not run; compare the others, and their pictures as well.

    ``nbdev_clean`` nulls execution counts; nbval fails every such cell that has stored output, and
    looks at no other.
    """
    cell = getattr(item, "cell", None)
    if cell is None:
        return
    if _NOT_RUN.search(cell.source):
        item.options["skip"] = True
    if cell.get("execution_count") is None:
        cell.execution_count = 0
        for output in cell.get("outputs", ()):
            if "execution_count" in output:
                output.execution_count = 0
    item.compare_outputs = partial(_compare_outputs, item, item.compare_outputs)


def _compare_outputs(
    item: Any, compare: Any, fresh: Sequence[Any], stored: Sequence[Any], *options: Any
) -> bool:
    """nbval's comparison, which skips pictures, and then the pictures.

    A cell without stored output may show nothing but a library's warnings.
    """
    if any(_THREAD in output.get("text", "") for output in fresh):
        item.comparison_traceback = ["".join(output.get("text", "") for output in fresh)]
        return False
    if not stored:
        shown = [output for output in fresh if output.get("name") != "stderr"]
        if shown:
            item.comparison_traceback = [f"this is not stored: {shown}"]
        return not shown
    if not compare(fresh, stored, *options):
        return False
    for kind in KINDS:
        complaint = _pictures_differ(_pictures(kind, stored), _pictures(kind, fresh))
        if complaint:
            item.comparison_traceback.append(f"{kind}: {complaint}")
            return False
    return True


def _pictures(kind: str, outputs: Sequence[Any]) -> list[np.ndarray]:
    """The pictures of one kind among a cell's outputs, ``[height, width, 4]``."""
    texts = [output["data"][kind] for output in outputs if kind in output.get("data", {})]
    images = [Image.open(BytesIO(b64decode(text))) for text in texts]
    return [np.asarray(image.convert("RGBA"), np.int16) for image in images]


def _pictures_differ(stored: Sequence[np.ndarray], fresh: Sequence[np.ndarray]) -> str:
    """What differs between the pictures of a notebook and those that its cell draws now."""
    if len(stored) != len(fresh):
        return f"{len(stored)} pictures are stored, {len(fresh)} are drawn"
    for number, (one, other) in enumerate(zip(stored, fresh, strict=True)):
        if one.shape != other.shape:
            return f"picture {number} is stored as {one.shape}, drawn as {other.shape}"
        apart = np.abs(one - other)
        mean, far = apart.mean(), (apart.max(axis=2) > FAR).mean()
        if mean > MAX_MEAN or far > MAX_FAR:
            return (
                f"picture {number} differs by {mean:.1f} of 255 on average, "
                f"{far:.1%} of its pixels by more than {FAR}"
            )
    return ""
