"""What signing, labelling and encoding a picture cost, and which chroma subsampling is best.

Usage: ``python bench/label.py [--repeats N]``. Prints a table, writes ``bench/results/label.json``.
Every row is timed in the same run, interleaved, on the same 512x512 drawing.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from stylegen.pocket import Scene, draw
from stylegen.signature import add_watermark
from stylegen.signature.c2pa import ContentCredentials
from stylegen.signature.label import Label, encode_labelled

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
# pylint: disable=wrong-import-position
from certificates import write_chain  # noqa: E402
from stored import store  # noqa: E402

LABEL = Label(1, "김하늘", "pocket", lora_sha256="0f" * 32, copyright_notice="김하늘")


def encode(image: Image.Image, subsampling: int) -> bytes:
    """A plain JPEG of quality 95; subsampling 0 is 4:4:4, 2 is 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=subsampling)
    return buffer.getvalue()


def psnr(image: Image.Image, jpeg: bytes) -> float:
    """Peak signal-to-noise ratio in dB of a JPEG against its original."""
    seen = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=float)
    return float(10 * np.log10(255**2 / np.mean((seen - np.asarray(image, dtype=float)) ** 2)))


def measure(rows: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each row, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for name, call in rows.items():
        call()
    for _ in range(repeats):
        for name, call in rows.items():
            started = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - started) * 1000)
    return times


def main(repeats: int) -> None:
    """Time, print, write."""
    with tempfile.TemporaryDirectory() as folder:
        credentials = ContentCredentials(*write_chain(Path(folder)))
    rng = np.random.default_rng(0)
    picture = draw(Scene.random(rng), 512, 512)
    signed = add_watermark(picture, "김하늘")
    labelled = encode_labelled(signed, LABEL)
    rows: dict[str, Callable[[], object]] = {
        "encode 4:4:4": lambda: encode(signed, 0),
        "encode 4:2:0": lambda: encode(signed, 2),
        "sign": lambda: add_watermark(picture, "김하늘"),
        "label + encode 4:4:4": lambda: encode_labelled(signed, LABEL),
        "sign + label + encode": lambda: encode_labelled(add_watermark(picture, "김하늘"), LABEL),
        "C2PA signing": lambda: credentials.sign(labelled, LABEL),
    }
    times = measure(rows, repeats)
    alone = statistics.median(times["encode 4:4:4"])
    table = {}
    print(f"{'row':24}{'median ms':>10}{'p90 ms':>10}{'of encode':>10}")
    for name, values in times.items():
        median, p90 = statistics.median(values), statistics.quantiles(values, n=10)[-1]
        table[name] = {"median_ms": median, "p90_ms": p90, "ratio_to_encode": median / alone}
        print(f"{name:24}{median:10.2f}{p90:10.2f}{median / alone:10.2f}")
    quality = {}
    for name, subsampling in (("4:4:4", 0), ("4:2:0", 2)):
        jpegs = [(image, encode(image, subsampling)) for image in pictures(rng)]
        size = statistics.mean(len(jpeg) for _, jpeg in jpegs)
        worst = min(psnr(image, jpeg) for image, jpeg in jpegs)
        mean = statistics.mean(psnr(image, jpeg) for image, jpeg in jpegs)
        quality[name] = {"bytes": size, "psnr_mean_db": mean, "psnr_worst_db": worst}
        print(f"{name}: {size / 1000:.1f} kB, PSNR mean {mean:.1f} dB, worst {worst:.1f} dB")
    store("label", {"repeats": repeats, "times": table, "quality": quality}, "pillow")


def pictures(rng: np.random.Generator) -> list[Image.Image]:
    """Drawings in every style, signed: flat colours with sharp edges, the hard case for chroma."""
    scenes = [Scene.random(rng) for _ in range(20)]
    styles = [None, "hatching", "watercolour", "mosaic", "neon"]
    return [
        add_watermark(draw(scene, 512, 512, styles[i % 5]), "김하늘")
        for i, scene in enumerate(scenes)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    main(parser.parse_args().repeats)
