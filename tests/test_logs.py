"""What one reads of a worker and of a job: a line each, for people and for machines."""

import json
import logging
import re
import threading
from dataclasses import replace
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import TOKEN
from painter import Painter, painting_parts

from stylegen import __version__
from stylegen.job import OutOfMemory
from stylegen.logs import set_up_logging
from stylegen.queue import Delivery, Retries
from stylegen.settings import Settings
from stylegen.storage import FolderStore, LoraFiles
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, consume, do_delivery, main

Order = dict[str, Any]
OPERATING = Path(__file__).parents[1] / "docs/operating.md"
SECONDS = {f"{stage}_seconds" for stage in ("lora", "draw", "encode", "upload", "notify")}


class Terminal(StringIO):
    """Standard error, where somebody reads it."""

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.fixture(name="log")
def _log() -> StringIO:
    """The log of a worker, which is not on a terminal."""
    log = StringIO()
    set_up_logging("INFO", stream=log)
    return log


def test_no_part_shows_a_secret(tmp_path: Path) -> None:
    """Where one is printed, in a log or a notebook."""
    parts = Parts(print, FolderStore(tmp_path), [], token="t0ken", secret="s3cret")
    shown = f"{parts!r} {Retries('amqp://worker:passw0rd@broker')!r}"
    assert "Parts(" in shown and not re.search("t0ken|s3cret|passw0rd", shown)


def settled(log: StringIO) -> list[dict[str, Any]]:
    """The lines that sum jobs up."""
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in lines if "outcome" in line]


@pytest.fixture(name="painting")
def _painting(backend: WebhookReceiver, tmp_path: Path) -> Parts:
    """A worker's parts without a model, with the cache of LoRAs."""
    parts = painting_parts(backend.url)
    loras = LoraFiles(parts.store, tmp_path, on_lookup=parts.metrics.count_lookup)
    return replace(parts, loras=loras, idempotent=True)


class NoRetries(Retries):
    """Puts a message nowhere."""

    def schedule_retry(self, delivery: Delivery) -> None:
        """As it says."""

    requeue = schedule_retry


def bring(parts: Parts, order: Order, **delivery: Any) -> None:
    """Settle a delivery of the job."""
    brought = Delivery(0, 1, json.dumps(order).encode(), **delivery)
    do_delivery(brought, parts, NoRetries("amqp://none"))


def test_a_finished_job_is_one_line(log: StringIO, painting: Parts, order: Order) -> None:
    """Its outcome, style, attempt, times, speed, LoRA and size; and not its words."""
    bring(painting, order, headers={"x-stylegen-attempt": 1})
    bring(painting, order | {"generation_id": 501, "style_id": "neon"})
    first, second = settled(log)
    picture = painting.store.read("generations/gen_500.jpg") or b""
    known = {"outcome", "style_id", "attempt", "lora", "bytes"}
    expected = dict(zip(sorted(known), (2, len(picture), "miss", "complete", 10), strict=True))
    assert {name: first[name] for name in known} == expected
    assert (first["generation_id"], first["levelname"]) == (500, "INFO")
    assert SECONDS <= set(first) and first["steps_per_second"] > 0
    assert sum(first[stage] for stage in SECONDS) <= first["seconds"] + 0.01
    assert (second["style_id"], second["attempt"], second["lora"]) == ("neon", 1, "hit")
    assert not [word for word in ("heart", "김하늘", TOKEN) if word in log.getvalue()]
    documented = re.findall(r"^\| `(\w+)` \|", OPERATING.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(first) - {"message", "name", "levelname"} <= set(documented)


def test_an_end_that_is_no_picture_is_one_line(
    log: StringIO, painting: Parts, order: Order
) -> None:
    """By its code; a retry says why; who was given to another has no times."""

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise OutOfMemory("the device has too little memory for this picture")

    bring(painting, order | {"lora_model_url": "s3://models/none.safetensors"})
    bring(replace(painting, draw=out_of_memory), order | {"generation_id": 501})
    bring(painting, order | {"generation_id": 502}, redelivered=True)
    failed, retried, redelivered = settled(log)
    assert (failed["outcome"], failed["style_id"]) == ("LORA_NOT_FOUND", 10)
    assert "bytes" not in failed and "draw_seconds" not in failed
    assert (retried["outcome"], retried["error_code"]) == ("retried", "OUT_OF_MEMORY")
    assert "draw_seconds" in retried and "upload_seconds" not in retried
    assert (redelivered["outcome"], redelivered["generation_id"]) == ("redelivered", 502)


def test_jobs_side_by_side_keep_their_lines_apart(
    log: StringIO, painting: Parts, order: Order
) -> None:
    """What one of them noted is not the other's."""
    jobs = [order | {"generation_id": 600 + n, "style_id": f"style-{n}"} for n in range(4)]
    threads = [threading.Thread(target=bring, args=(painting, job)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    shown = {line["generation_id"]: line["style_id"] for line in settled(log)}
    assert shown == {600 + n: f"style-{n}" for n in range(4)}


@pytest.mark.parametrize("stream", [Terminal(), StringIO()], ids=["terminal", "file"])
def test_times_have_their_zone(stream: StringIO) -> None:
    """ISO 8601, as ``date --iso-8601=seconds`` writes it; the moment is the record's own."""
    set_up_logging("INFO", stream=stream)
    before = datetime.now().astimezone()
    logging.getLogger("stylegen.demo").info("said")
    line = stream.getvalue()
    shown = line.split()[0] if stream.isatty() else json.loads(line)["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", shown)
    assert abs((datetime.fromisoformat(shown) - before).total_seconds()) < 5


@pytest.fixture(name="wrong")
def _wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without what a worker needs, with a slip."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("STYLEGEN_DEVICE", "t0aster")
    monkeypatch.setenv("STYLEGEN_MODLE", "x")


@pytest.mark.usefixtures("wrong")
def test_wrong_settings_are_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON, where the log is; one line for each, without its value."""
    assert main([]) == 2
    shown = capsys.readouterr().err
    lines = [json.loads(line) for line in shown.splitlines()]
    assert [line["message"].split(":")[0] for line in lines] == [
        "INTERNAL_API_TOKEN",
        "WEBHOOK_ALLOWED_ORIGINS",
        "STYLEGEN_DEVICE",
        "STYLEGEN_MODLE",
    ]
    assert {line["levelname"] for line in lines} == {"CRITICAL"} and "t0aster" not in shown


def test_the_start_says_what_starts(
    log: StringIO, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before the model is loaded: version, model, device, queue, batch."""
    monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", lambda *_, **__: None)
    monkeypatch.setattr("stylegen.pipeline.resident.Engine", Painter())
    monkeypatch.setattr("stylegen.worker.consumer.consume_queue", lambda *_, **__: None)
    settings = Settings(
        internal_api_token=TOKEN,
        webhook_allowed_origins="https://api.example.com",
        stylegen_storage_folder=tmp_path,
        stylegen_model="pocket",
        stylegen_device="cpu",
        stylegen_queue="own",
        stylegen_batch=3,
    )
    consume(settings, threading.Event())
    (line,) = [json.loads(line) for line in log.getvalue().splitlines() if "version" in line]
    shown = {name: line[name] for name in ("version", "model", "device", "queue", "batch")}
    wanted = {"model": "pocket", "device": "cpu", "queue": "own", "batch": 3}
    assert shown == wanted | {"version": __version__} and line["levelname"] == "INFO"
