"""The deployed worker, but for its model: pictures in one colour, which is its artist's LoRA.

``FAULT_STATE`` names states, with commas, at each of which this process kills itself, once; a job's
tags may name what goes wrong on the "device" while it is drawn, once for each job unless it is the
job's own fault. A job that is ``held`` stays half drawn until its case frees it.
"""

import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from stylegen.job import DeviceLost, GenerationJob, OutOfMemory
from stylegen.queue import Delivery, Retries
from stylegen.settings import Settings
from stylegen.storage import LoraFiles
from stylegen.worker import Metrics, Parts, consumer, main, make_store

STEPS = 10
NOTES = Path(os.environ.get("FAULT_NOTES", "."))
_GPU = threading.Lock()


def once(name: str) -> bool:
    """Whether this is the first time, of all processes, that somebody asks."""
    try:
        (NOTES / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _raise(error: Exception) -> None:
    raise error


def _no_memory() -> None:
    raise OutOfMemory("the device has too little memory for this picture")


FAULTS = {
    "oom": _no_memory,
    "cuda": lambda: _raise(DeviceLost("the device reports an error that stays")),
    "hang": lambda: time.sleep(3600),
    "abort": os.abort,
}


def draw(job: GenerationJob, lora: Path, *, on_step: Any = None, **_: Any) -> Any:
    """A picture in the LoRA's colour, drawn alone and step by step; a torn file has two."""
    from PIL import Image

    (NOTES / f"drawn-{job.generation_id}-{uuid.uuid4().hex}").touch()
    if "poison" in job.prompt_tags:
        os.kill(os.getpid(), signal.SIGKILL)
    (colour,) = set(Path(lora).read_text(encoding="ascii").split())
    seconds = 0.5 if "slow" in job.prompt_tags else 0.01
    with _GPU:
        for step in range(STEPS + 1):
            on_step(round(step * job.total_steps / STEPS))
            time.sleep(seconds)
            if step == STEPS // 2:
                _go_wrong(job)
    return Image.new("RGB", job.resolution, colour)


def _go_wrong(job: GenerationJob) -> None:
    while "held" in job.prompt_tags and not (NOTES / f"free-{job.generation_id}").exists():
        time.sleep(0.05)
    if "raise" in job.prompt_tags:
        raise RuntimeError("a bug")
    if "starved" in job.prompt_tags and not (NOTES / "fed").exists():
        _no_memory()
    for name in set(FAULTS).intersection(job.prompt_tags):
        if once(f"{name}-{job.generation_id}"):
            FAULTS[name]()


def on_state(state: str) -> None:
    """Die at a state, as by a power cut."""
    if state in os.environ.get("FAULT_STATE", "").split(",") and once(f"state-{state}"):
        os.kill(os.getpid(), signal.SIGKILL)


class CountedRetries(Retries):
    """The worker's own, with a state after a redelivered message was published again."""

    def requeue(self, delivery: Delivery) -> None:
        """To the end of the work queue, counted."""
        super().requeue(delivery)
        on_state("republished")


def make_parts(settings: Settings, metrics: Metrics | None = None) -> Parts:
    """The worker's own parts, around `draw`."""
    metrics = metrics or Metrics()
    store, secret = make_store(settings), settings.webhook_secret
    folder, size = settings.stylegen_cache_folder, settings.stylegen_cache_bytes
    return Parts(
        draw=draw,
        store=store,
        allowed_origins=settings.webhook_allowed_origins,
        token=settings.internal_api_token.get_secret_value(),
        secret=secret.get_secret_value() if secret else "",
        loras=LoraFiles(store, folder, size, metrics.count_lookup),
        metrics=metrics,
        on_state=on_state,
    )


if __name__ == "__main__":
    consumer.make_parts = make_parts
    consumer.Retries = CountedRetries  # type: ignore[misc]
    sys.exit(main())
