"""The deployed consumer, end to end: ``python worker.py`` on a real broker, bucket and receiver."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
from conftest import TOKEN
from PIL import Image
from rabbit import Broker, free_ports
from s3_server import S3Server
from waiting import wait_until

from stylegen.queue import Delivery, Retries, publish_job
from stylegen.webhook import ReceivedWebhook, WebhookReceiver

ROOT = Path(__file__).parent.parent
QUEUE = "image_generation"
SESSION = "session-token-of-a-role"


def publish(rabbit: Broker, *bodies: bytes, **properties: Any) -> None:
    """Publish as the platform's producers do: a plain durable queue, declared by the producer."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    channel = connection.channel()
    channel.queue_declare(queue=QUEUE, durable=True)
    for body in bodies:
        kind = pika.BasicProperties(delivery_mode=2, **properties)
        channel.basic_publish("", QUEUE, body, kind)
    connection.close()


@pytest.fixture
def environment(
    rabbit: Broker, s3: S3Server, pocket: Path, backend: WebhookReceiver, tmp_path: Path
) -> dict[str, str]:
    """What an operator sets; buckets exist, and hold one LoRA."""
    client = s3.client()
    for bucket in ("models", "stylelicense-images"):
        client.create_bucket(Bucket=bucket)
    client.upload_file(str(pocket / "models/style_10.safetensors"), "models", "10/lora.safetensors")
    return os.environ | {
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_ORIGINS": backend.url,
        "RABBITMQ_URL": rabbit.url,
        "AWS_ENDPOINT_URL_S3": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "STYLEGEN_MODEL": str(pocket / "pocket"),
        "STYLEGEN_DEVICE": "cpu",
        "STYLEGEN_PREFETCH": "1",
        "STYLEGEN_CACHE_FOLDER": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }


_PAINTER = """
import sys
from painter import Painter
from stylegen import worker
from stylegen.pipeline import resident
painter = resident.Engine = Painter()
resident.load_pipeline = lambda *_, **__: None
"""
_MAIN = "sys.exit(worker.main([]))"


@contextmanager
def worker(
    environment: dict[str, str], log: Path, *, paints: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """The consumer as a process; killed at the end if it still runs.

    Where drawing is not the point it `paints`: the model is replaced, which takes seconds to load.
    """
    command = ["-c", _PAINTER + _MAIN] if paints else ["worker.py"]
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])} if paints else {}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment | path,
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def job(backend: WebhookReceiver, number: int, **changes: Any) -> bytes:
    """A job of this test's bucket."""
    fields = {
        "generation_id": number,
        "style_id": 10,
        "lora_model_url": "s3://models/10/lora.safetensors",
        "prompt_tags": ["red", "heart"],
        "artist_name": "김하늘",
        "webhook_url": backend.url,
        "seed": 0,
    }
    return json.dumps(fields | changes).encode()


def test_three_jobs(
    environment: dict[str, str],
    rabbit: Broker,
    s3: S3Server,
    backend: WebhookReceiver,
    tmp_path: Path,
) -> None:
    """Square, tall, and one whose LoRA is missing; then a clean stop."""
    publish(
        rabbit,
        job(backend, 1),
        job(backend, 2, aspect_ratio="1:2", seed=7, num_inference_steps=10),
        job(backend, 3, lora_model_url="s3://models/none.safetensors"),
    )
    log = tmp_path / "worker.log"
    with worker(environment, log) as process:
        assert backend.wait_for(1, "failed", timeout=120), log.read_text()
        wait_until(lambda: rabbit.queue_state(QUEUE) == (0, 0))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    check_webhooks(backend, s3)
    for number, size in ((1, (512, 512)), (2, (512, 1024))):
        stored = s3.client().get_object(
            Bucket="stylelicense-images", Key=f"generations/gen_{number}.jpg"
        )
        assert stored["ContentType"] == "image/jpeg"
        with Image.open(io.BytesIO(stored["Body"].read())) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("JPEG", size)
    assert TOKEN not in log.read_text()


def check_webhooks(backend: WebhookReceiver, s3: S3Server) -> None:
    """The exact sequence, bodies and headers of the three jobs."""
    seen = [(webhook.method, webhook.event, webhook.body) for webhook in backend.received]
    for number, total, expected in ((1, 50, (0, 13, 25, 38, 45)), (2, 10, (0, 3, 5, 8, 9))):
        steps = [body["progress"] for _, event, body in seen if _is_progress(event, body, number)]
        reached = [(p["current_step"], p["progress_percent"]) for p in steps]
        assert reached == list(zip(expected, (0, 25, 50, 75, 90), strict=True))
        assert all(p["total_steps"] == total and p["estimated_seconds"] >= 0 for p in steps)
    terminal = [(method, event, body) for method, event, body in seen if event != "progress"]
    base = f"{s3.endpoint_url}/stylelicense-images/generations"
    common = {"steps": 50, "guidance_scale": 7.5, "scheduler": "dpmsolver++", "width": 512}
    assert terminal == [
        _complete(1, f"{base}/gen_1.jpg", common | {"seed": 0, "height": 512}),
        _complete(2, f"{base}/gen_2.jpg", common | {"seed": 7, "height": 1024, "steps": 10}),
        ("POST", "failed", _failure(3, "lora_model_url: s3://models/none.safetensors: not found")),
    ]
    assert [event for _, event, _ in seen] == [*["progress"] * 5, "complete"] * 2 + ["failed"]
    for webhook in backend.received:
        assert webhook.headers["Authorization"] == f"Bearer {TOKEN}"
        assert webhook.headers["X-Request-Source"] == "inference-server"
        assert webhook.headers["Content-Type"] == "application/json"
        assert webhook.method == ("PATCH" if webhook.event == "progress" else "POST")
        assert webhook.path == f"/api/webhooks/inference/{webhook.event}"


def _is_progress(event: str, body: dict[str, Any], number: int) -> bool:
    return event == "progress" and body["generation_id"] == number


def _complete(number: int, url: str, metadata: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    body = {"generation_id": number, "result_url": url, "metadata": metadata}
    return "POST", "complete", body


def _failure(number: int, text: str) -> dict[str, Any]:
    return {
        "generation_id": number,
        "error_message": text,
        "error_code": "LORA_NOT_FOUND",
        "retry_count": 0,
    }


def test_bad_messages_neither_crash_nor_loop(
    environment: dict[str, str], rabbit: Broker, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """What can be answered is; what can't is set aside; the next good job is done."""
    unanswerable = [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"{}",
        job(backend, 4, webhook_url="https://evil.example"),
    ]
    answerable = job(backend, 5, prompt_tags=[], seed=-1, num_inference_steps=10**9)
    publish(rabbit, *unanswerable, answerable, job(backend, 6, num_inference_steps=2))
    log = tmp_path / "worker.log"
    with worker(environment, log, paints=True) as process:
        assert backend.wait_for(1, "complete", timeout=120), log.read_text()
        wait_until(lambda: rabbit.queue_state(QUEUE) == (0, 0))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert rabbit.queue_state(f"{QUEUE}.dead") == (len(unanswerable), 0)
    (failed,) = backend.wait_for(1, "failed")
    assert failed.body["error_code"] == "INVALID_MESSAGE"
    for name in ("prompt_tags", "seed", "num_inference_steps"):
        assert name in failed.body["error_message"]
    assert not [webhook for webhook in backend.received if webhook.body["generation_id"] == 4]


def test_two_jobs_in_hand(
    environment: dict[str, str], rabbit: Broker, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """With ``STYLEGEN_PREFETCH=2`` jobs overlap; each has its own events, in order."""
    numbers = (11, 12, 13)

    def answer(hook: ReceivedWebhook) -> int:
        """The first picture is only accepted once another job has begun."""
        if hook.event == "complete":
            wait_until(lambda: len({each.body["generation_id"] for each in backend.received}) > 1)
        return 200

    backend.answer = answer
    publish(rabbit, *(job(backend, number, num_inference_steps=4) for number in numbers))
    two, log = {"STYLEGEN_PREFETCH": "2"}, tmp_path / "worker.log"
    with worker(environment | two, log, paints=True) as process:
        assert len(backend.wait_for(3, "complete", timeout=120)) == 3
        wait_until(lambda: rabbit.queue_state(QUEUE) == (0, 0))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for number in numbers:
        own = [hook for hook in backend.received if hook.body["generation_id"] == number]
        assert [hook.event for hook in own] == [*["progress"] * 5, "complete"]


def test_stop_finishes_the_job_in_hand(
    environment: dict[str, str], rabbit: Broker, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """SIGTERM in the middle of a picture: it is delivered, the next one stays in the queue."""
    publish(rabbit, job(backend, 7, num_inference_steps=12), job(backend, 8))
    told, log = threading.Event(), tmp_path / "worker.log"
    backend.answer = lambda hook: 200 if hook.event == "progress" or told.wait(60) else 500
    with worker(environment, log) as process:
        assert backend.wait_for(2, "progress", timeout=120)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "finishing the jobs in flight" in log.read_text())
        told.set()
        assert process.wait(60) == 0
    assert [webhook.body["generation_id"] for webhook in backend.wait_for(1, "complete")] == [7]
    wait_until(lambda: rabbit.queue_state(QUEUE) == (1, 0))
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    connection.channel().queue_purge(QUEUE)
    connection.close()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    environment: dict[str, str],
    rabbit: Broker,
    backend: WebhookReceiver,
    tmp_path: Path,
    second: signal.Signals,
) -> None:
    """The first waits for the job in flight; the second does not, and the job goes to another."""
    queue, log = f"second-{second.name}", tmp_path / "worker.log"
    own = {"STYLEGEN_QUEUE": queue, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    publish_job(job(backend, 9), url=rabbit.url, queue_name=queue)
    command = [sys.executable, "-c", f"{_PAINTER}painter.gate.clear()\n{_MAIN}"]
    with log.open("wb") as output, subprocess.Popen(
        command, env=environment | own, stdout=output, stderr=output
    ) as process:
        try:
            assert backend.wait_for(1, "progress", timeout=60), log.read_text()
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: "finishing the jobs in flight" in log.read_text())
            assert process.poll() is None and rabbit.queue_state(queue) == (0, 1)
            process.send_signal(second)
            assert process.wait(10) == 4
        finally:
            process.kill()
    wait_until(lambda: rabbit.queue_state(queue) == (1, 0))
    assert [hook.event for hook in backend.received] == ["progress"]


def page(port: int, name: str) -> tuple[int, str]:
    """A page of the health port: status and text; 0 while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def test_an_operator_sees_it_work(
    environment: dict[str, str], rabbit: Broker, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """Health, numbers and a log that a machine reads, with the job's id and without secrets."""
    (port,) = free_ports(1)
    publish(
        rabbit,
        job(backend, 31, num_inference_steps=4, prompt_tags=["Quillwort"]),
        job(backend, 32, lora_model_url="s3://models/none.safetensors"),
    )
    log = tmp_path / "worker.log"
    own = {"STYLEGEN_HEALTH_PORT": str(port), "LOG_LEVEL": "DEBUG", "AWS_SESSION_TOKEN": SESSION}
    own |= {"STYLEGEN_LABEL": "full"}
    with worker(environment | own, log) as process:
        assert backend.wait_for(1, "failed", timeout=120), log.read_text()
        wait_until(lambda: rabbit.queue_state(QUEUE) == (0, 0))
        assert [page(port, name)[0] for name in ("livez", "readyz")] == [200, 200]
        _, metrics = page(port, "metrics")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for line in (
        'stylegen_jobs_total{outcome="complete"} 1.0',
        'stylegen_jobs_total{outcome="LORA_NOT_FOUND"} 1.0',
        'stylegen_lora_cache_total{result="miss"} 1.0',
        'stylegen_webhook_deliveries_total{event="progress",result="delivered"} 5.0',
        'stylegen_stage_seconds_count{stage="upload"} 1.0',
        "stylegen_jobs_in_progress 0.0",
    ):
        assert line in metrics
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    loud = {(line["name"].split(".")[0], line["levelname"]) for line in lines}
    assert ("stylegen", "DEBUG") in loud and "pika" not in dict(loud)
    assert {name for name, level in loud if level == "DEBUG"} == {"stylegen"}
    assert 32 in {line["generation_id"] for line in lines}
    assert not [word for word in (TOKEN, SESSION, "Quillwort") if word in log.read_text()]


def test_the_documented_rights_are_enough(
    environment: dict[str, str], rabbit: Broker, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """With no more than docs/security.md asks for: a job, a retry, a dead letter, a stop."""
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    names, exchange = re.findall(r"`(\^[^`]+)`", page)
    url = rabbit.add_user(names, exchange, names)
    retries = Retries(url, QUEUE, (1,))
    publish(rabbit, job(backend, 41, num_inference_steps=1), b"for nobody")
    log = tmp_path / "worker.log"
    dead = rabbit.queue_states().get(f"{QUEUE}.dead", (0, 0))[0]
    with worker(environment | {"RABBITMQ_URL": url}, log, paints=True) as process:
        assert backend.wait_for(1, "complete", timeout=120), log.read_text()
        retries.schedule_retry(Delivery(0, 1, job(backend, 42, num_inference_steps=1)))
        assert backend.wait_for(2, "complete", timeout=60), log.read_text()
        wait_until(lambda: rabbit.queue_state(QUEUE) == (0, 0))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert rabbit.queue_state(f"{QUEUE}.dead")[0] == dead + 1
