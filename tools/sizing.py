"""What a fleet does, moves and costs: arithmetic on the stored results of the benches.

Usage: ``python tools/sizing.py [--seconds S] [--price P] [--lora-mb M] [--busy SHARE]``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "bench" / "results"
FLEETS = (1, 10, 100, 1000, 10_000)
WEBHOOKS = 6
"""Five of progress and one at the end."""


def measured() -> tuple[float, float, float]:
    """Share of the ideal at the largest fleet, broker's milliseconds and JPEG's MB a job."""
    scale: Any = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    label: Any = json.loads((RESULTS / "label.json").read_text(encoding="utf-8"))
    last = scale["fleets"][-1]
    share = last["full_queue"]["jobs_per_second"] * scale["job_seconds"] / last["workers"]
    return share, scale["broker_ms_per_job"], label["quality"]["4:4:4"]["bytes"] / 1e6


def table(seconds: float, price: float, lora_mb: float, busy: float) -> str:
    """The fleets' table.

    Args:
        seconds: A picture's, on your device.
        price: Of one worker's machine, an hour.
        lora_mb: Size of an artist's file.
        busy: Share of the time that there is work.

    Returns:
        A line for each of `FLEETS`.
    """
    share, broker_ms, jpeg_mb = measured()
    each = share * busy / seconds  # jobs a second
    head = ("workers", "pictures/h", "jobs/s", "broker", "LoRA MB/s", "JPEG MB/s", "webhooks/s")
    lines = [f"{head[0]:>7}" + "".join(f"{word:>12}" for word in head[1:])]
    for count in FLEETS:
        rate = count * each
        broker = f"{rate * broker_ms / 1000:.1%}"
        lines.append(
            f"{count:7}{rate * 3600:12,.0f}{rate:12,.1f}{broker:>12}"
            f"{rate * lora_mb:12,.1f}{rate * jpeg_mb:12,.2f}{rate * WEBHOOKS:12,.1f}"
        )
    lines.append(f"a thousand pictures: {1000 * price / (each * 3600):.2f} at {price:g} an hour")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="a picture's")
    parser.add_argument("--price", type=float, default=1.0, help="of a worker's machine, an hour")
    parser.add_argument("--lora-mb", type=float, default=40.0, help="size of an artist's file")
    parser.add_argument("--busy", type=float, default=0.7, help="share of the time with work")
    chosen = parser.parse_args()
    print(table(chosen.seconds, chosen.price, chosen.lora_mb, chosen.busy))
