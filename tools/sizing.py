"""What a fleet does, moves and costs: arithmetic on the stored results of the benches.

Usage: ``python tools/sizing.py [--seconds S] [--price P] [--lora-mb M] [--busy SHARE]``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from stylegen.fleet.orders import Load, orders

RESULTS = Path(__file__).parent.parent / "bench" / "results"
FLEETS = (1, 10, 100, 1000, 10_000)
WEBHOOKS = 6
"""Five of progress and one at the end."""
REQUESTS = 4
"""To the bucket, by a job whose LoRA is at hand: manifest read and written, picture, version."""


def message_mb() -> float:
    """MB of a job's message, as the load generator sends it."""
    (order,) = orders(Load(jobs=1), "https://api.example.com")
    return len(json.dumps(order).encode()) / 1e6


def measured() -> tuple[float, float]:
    """Share of the ideal at the largest fleet, and a JPEG's MB."""
    scale: Any = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    label: Any = json.loads((RESULTS / "label.json").read_text(encoding="utf-8"))
    last = scale["fleets"][-1]
    share = last["full_queue"]["jobs_per_second"] * scale["job_seconds"] / last["workers"]
    return share, label["quality"]["4:4:4"]["bytes"] / 1e6


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
    share, jpeg_mb = measured()
    each = share * busy / seconds  # jobs a second
    head = "pictures/h jobs/s broker-MB/s LoRA-MB/s JPEG-MB/s bucket/s webhooks/s".split()
    lines = ["workers" + "".join(f"{word.replace('-', ' '):>13}" for word in head)]
    for count in FLEETS:
        rate = count * each
        lines.append(
            f"{count:7}{rate * 3600:13,.0f}{rate:13,.1f}{rate * 2 * message_mb():13,.3f}"
            f"{rate * lora_mb:13,.1f}{rate * jpeg_mb:13,.2f}"
            f"{rate * REQUESTS:13,.1f}{rate * WEBHOOKS:13,.1f}"
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
