"""What stands for the engine where drawing is not the point: a flat picture, when it may."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from stylegen.job import GenerationJob
from stylegen.settings import Settings
from stylegen.storage import FolderStore
from stylegen.worker import Parts, consume

ORDER: dict[str, Any] = {
    "generation_id": 500,
    "style_id": 10,
    "lora_model_url": "s3://models/style_10.safetensors",
    "prompt_tags": ["red", "heart"],
    "artist_name": "김하늘",
    "webhook_url": "https://api.example.com",
}
"""A valid job; its LoRA is in the bucket of `painting_parts`."""


class Painter:
    """An engine without a model.

    Attributes:
        gate: While it is clear, pictures wait between their first and their last step.
        begun: Ids of the jobs that have taken their first step.
        pipeline: What the worker made its engine of.
        options: The engine's other arguments.
        warmed: How often it was warmed up.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun: list[int | str] = []
        self.pipeline: Any = None
        self.options: dict[str, Any] = {}
        self.warmed = 0

    def __call__(self, pipeline: Any, **options: Any) -> "Painter":
        """Stand for the engine's class, too."""
        self.pipeline, self.options = pipeline, options
        return self

    def warm_up(self) -> None:
        """Compile nothing."""
        self.warmed += 1

    def draw(
        self, job: GenerationJob, _: Path, *, on_step: Callable[[int], None], **__: Any
    ) -> Image.Image:
        """A picture of one colour, of the job's size."""
        on_step(0)
        self.begun.append(job.generation_id)
        assert self.gate.wait(60), "the gate stayed shut"
        on_step(job.total_steps)
        return Image.new("RGB", job.resolution, "teal")


def painting_parts(origin: str = "https://api.example.com") -> Parts:
    """The parts of a worker that paints, with a bucket of its own.

    Args:
        origin: Who may receive webhooks.
    """
    store = FolderStore(Path(tempfile.mkdtemp()))
    store.put("models/style_10.safetensors", b"tensors of an artist", "")
    return Parts(Painter().draw, store, (origin,), "t0ken")


@contextmanager
def consuming(settings: Settings, painter: Painter) -> Iterator[threading.Event]:
    """The worker's `consume` on a thread; what it raises fails the test.

    Args:
        settings: What the environment says.
        painter: Its gate is opened at the end, so that no job is left in flight.

    Yields:
        The event that asks it to stop.
    """
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            consume(settings, stop)
        except BaseException as error:  # pylint: disable=broad-exception-caught
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        painter.gate.set()
        thread.join(60)
    assert not thread.is_alive(), "the consumer did not end"
    assert not errors, errors
