"""The corpus against the deployed consumer, on a real broker, bucket and receiver."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files import FILES, write_all
from headers import PROPERTIES
from messages import MESSAGES
from rabbit import Broker
from s3_server import S3Server
from test_consumer import QUEUE, environment, job, publish, worker  # noqa: F401
from waiting import wait_until

from stylegen.pipeline.engine import Engine
from stylegen.webhook import WebhookReceiver

_ENOUGH = 80


def told(backend: WebhookReceiver) -> dict[str, list[str]]:
    """The terminal events of each id, as outcomes."""
    ends = defaultdict(list)
    for hook in backend.received:
        if hook.event != "progress":
            code = f" {hook.body['error_code']}" if hook.event == "failed" else ""
            ends[json.dumps(hook.body["generation_id"])].append(hook.event + code)
    return ends


@pytest.fixture(name="stranger")
def _stranger() -> Iterator[WebhookReceiver]:
    """A receiver on this machine that is not allowed."""
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture(name="bodies")
def _bodies(
    s3: S3Server,
    backend: WebhookReceiver,
    stranger: WebhookReceiver,
    engine: Engine,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> dict[str, tuple[bytes, Any, str]]:
    """Every case: the message's bytes, the id to look for, and its outcome."""
    assert environment
    cases = {}
    for number, (name, (make, outcome)) in enumerate(MESSAGES.items(), 1000):
        fields = json.loads(job(backend, number, num_inference_steps=1))
        body = make(fields).replace(b"{port}", b"%d" % backend.server_port)
        body = body.replace(b"{stranger}", b"%d" % stranger.server_port)
        named = "corpus-word_1" if name == "generation_id: a word" else number
        cases[f"message: {name}"] = (body, named, outcome)
    for number, (name, path) in enumerate(write_all(tmp_path, engine.pipeline).items(), 2000):
        s3.client().upload_file(str(path), "models", f"corpus/{number}.safetensors")
        url = f"s3://models/corpus/{number}.safetensors"
        body = job(backend, number, num_inference_steps=1, lora_model_url=url)
        cases[f"file: {name}"] = (body, number, FILES[name][1])
    return cases


@pytest.mark.timeout(900)
def test_each_input_has_its_outcome(
    bodies: dict[str, tuple[bytes, Any, str]],
    environment: dict[str, str],  # noqa: F811
    rabbit: Broker,
    backend: WebhookReceiver,
    stranger: WebhookReceiver,
    tmp_path: Path,
) -> None:
    """No input crashes the worker, loops, or ends in any other way than the one it must.

    Each has exactly one dead letter or one terminal event, and nobody else is told anything.
    """
    assert len(bodies) >= _ENOUGH
    for name in (QUEUE, f"{QUEUE}.dead"):
        rabbit.take_all(name)
    publish(rabbit, *(body for body, _, _ in bodies.values()))
    log = tmp_path / "worker.log"
    with worker(environment | {"STYLEGEN_PREFETCH": "4"}, log) as process:
        wait_until(lambda: rabbit.queue_state(QUEUE) == (0, 0), timeout=600)
        assert process.poll() is None, log.read_text()[-3000:]
    wrong, dead, ends = {}, defaultdict(list), told(backend)
    for headers, body in rabbit.take_all(f"{QUEUE}.dead"):
        dead[body].append(f"dead {headers['x-stylegen-error-code']}")
    for name, (body, generation_id, outcome) in bodies.items():
        found = dead.pop(body, []) + ends.pop(json.dumps(generation_id), [])
        if found != [outcome]:
            wrong[name] = (found, outcome)
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)
    assert not dead and not ends, "somebody else's letter or event"
    may_hear = {json.dumps(each) for _, each, outcome in bodies.values() if outcome[:4] != "dead"}
    heard = {json.dumps(hook.body["generation_id"]) for hook in backend.received}
    assert heard <= may_hear and not stranger.received


def test_no_property_of_a_message_matters(
    environment: dict[str, str],  # noqa: F811
    rabbit: Broker,
    backend: WebhookReceiver,
    tmp_path: Path,
) -> None:
    """A good job is done whatever its headers say; none of them ends the connection."""
    cases = dict(enumerate(PROPERTIES.items(), 3000))
    rabbit.take_all(QUEUE)
    for number, (_, properties) in cases.items():
        publish(rabbit, job(backend, number, num_inference_steps=1), **properties)
    log = tmp_path / "worker.log"
    with worker(environment, log, paints=True) as process:
        wait_until(lambda: rabbit.queue_state(QUEUE) == (0, 0), timeout=120)
        assert process.poll() is None, log.read_text()[-3000:]
    ends, wanted = told(backend), {str(number): ["complete"] for number in cases}
    assert ends == wanted, f"{[cases[int(n)][0] for n in wanted if ends.get(n) != wanted[n]]}"
    assert "no broker" not in log.read_text()
