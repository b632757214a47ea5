"""Real parts for the tests: a broker node, an S3 server, a receiver, the pocket model.

None of them is skipped when it can't be had: a test that does not run proves nothing.
"""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from rabbit import Broker, RabbitNode, VirtualHost
from s3_server import S3Server

from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.pocket import main as lay_out_pocket
from stylegen.storage import FolderStore
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts

TOKEN = "t0ken-of-the-tests"
settings.register_profile("tests", deadline=None, database=None, derandomize=True)
settings.register_profile(
    "fuzz",
    deadline=None,
    database=None,
    max_examples=1000,
    print_blob=True,
    derandomize=False,  # where CI is set, hypothesis derandomizes unless told not to
)
settings.load_profile("tests")
collect_ignore = ["gpu"]  # has a conftest of its own: see there how it is run


def examples(count: int) -> settings:
    """How many inputs a test tries, always the same; `make fuzz` tries ten times as many, others.

    The profile's number is a percentage: hypothesis tries a hundred unless told otherwise.
    """
    return settings(max_examples=count * settings().max_examples // 100)


@pytest.fixture(autouse=True)
def _answers_may_fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a receiver's answer raises, on a thread of the server's, fails the test."""
    errors: list[BaseException | None] = []

    def handle_error(*_: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a client that hangs up is none of the answer's
            errors.append(error)

    monkeypatch.setattr(WebhookReceiver, "handle_error", handle_error)
    yield
    assert not errors, errors


@pytest.fixture(autouse=True)
def _logging_stays() -> Iterator[None]:
    """What a worker's set-up did to the logging is undone."""
    loggers = [logging.root, *map(logging.getLogger, ("stylegen", "pika", "waitress"))]
    handlers, levels = logging.root.handlers[:], [logger.level for logger in loggers]
    yield
    logging.root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Broker]:
    """A private virtual host of the run's broker."""
    with VirtualHost() as host:
        yield host


@pytest.fixture(scope="session")
def node() -> Iterator[RabbitNode]:
    """A private RabbitMQ node, which may be broken."""
    with RabbitNode() as node:
        yield node


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A private S3 server."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model (``pocket``) and two artists (``models/style_*``), as a bucket."""
    folder = tmp_path_factory.mktemp("pocket")
    assert lay_out_pocket([str(folder)]) == 0
    for style, name in ((10, "watercolour"), (11, "neon")):
        lora = folder / f"models/{name}.safetensors"
        lora.rename(lora.with_stem(f"style_{style}"))
    return folder


@pytest.fixture(name="environment")
def _environment(pocket: Path, rabbit: Broker) -> dict[str, str]:
    """A worker's, with the pocket model, a folder and a broker."""
    return os.environ | {
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_ORIGINS": "http://127.0.0.1:8099",
        "RABBITMQ_URL": rabbit.url,
        "STYLEGEN_STORAGE_FOLDER": str(pocket),
        "STYLEGEN_MODEL": str(pocket / "pocket"),
        "STYLEGEN_DEVICE": "cpu",
        "STYLEGEN_QUEUE": "supervised",
    }


@pytest.fixture(scope="session")
def engine(pocket: Path) -> Iterator[Engine]:
    """The resident engine on the pocket model."""
    engine = Engine(load_pipeline(str(pocket / "pocket"), device="cpu"))
    yield engine
    engine.close()


@pytest.fixture
def backend() -> Iterator[WebhookReceiver]:
    """A real HTTP receiver of webhooks."""
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture
def parts(engine: Engine, pocket: Path, backend: WebhookReceiver) -> Parts:
    """A worker's parts on folder storage."""
    return Parts(engine.draw, FolderStore(pocket), (backend.url,), TOKEN)


@pytest.fixture
def order(backend: WebhookReceiver) -> dict[str, Any]:
    """A small valid job."""
    return {
        "generation_id": 500,
        "style_id": 10,
        "lora_model_url": "s3://models/style_10.safetensors",
        "prompt_tags": ["red", "heart", "white background"],
        "artist_name": "김하늘",
        "webhook_url": backend.url,
        "num_inference_steps": 4,
    }
