"""docs/asyncapi.yaml: valid, of the worker's own names, true of messages that were really sent."""

import copy
import json
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from asyncapi import DOCUMENT, message_validator
from conftest import TOKEN
from pages import blocks

from stylegen import errors
from stylegen.queue import control_exchange, dead_letters
from stylegen.queue.delivery import ATTEMPT, EXPIRATION, REDELIVERIES, REDRIVES
from stylegen.queue.retries import ERROR, ERROR_CODE
from stylegen.settings import QUEUE_NAME
from stylegen.webhook import (
    WebhookReceiver,
    send_complete_webhook,
    send_failed_webhook,
    send_progress,
    webhook_urls,
)
from stylegen.webhook.progress import MILESTONES
from stylegen.webhook.request import HEADERS

ROOT = Path(__file__).parent.parent
STANDARD = json.loads((ROOT / "tests/schemas/asyncapi-3.0.0.json").read_text(encoding="utf-8"))
SECRET = "whsec_c3R5bGVnZW4tdGVzdC1zZWNyZXQtMDEyMzQ1Njc4OQ=="
COMPONENTS = DOCUMENT["components"]
EXAMPLES = blocks(ROOT / "docs/messages.md", r"json (\w+)")


def test_it_is_an_asyncapi_document() -> None:
    """By AsyncAPI's own schema, which does find a mistake."""
    judge = jsonschema.Draft7Validator(STANDARD)
    judge.validate(DOCUMENT)
    for place, name in (("channels", "jobs"), ("operations", "takeJob"), ("servers", "broker")):
        wrong = copy.deepcopy(DOCUMENT)
        wrong[place][name]["adress"] = "x"
        assert not judge.is_valid(wrong), place


def references(value: Any) -> list[str]:
    """Every `$ref` below a value."""
    if isinstance(value, list):
        return [each for part in value for each in references(part)]
    if not isinstance(value, dict):
        return []
    return [value["$ref"]] if "$ref" in value else references(list(value.values()))


def test_its_references_lead_somewhere() -> None:
    """Within it, or into the job's schema."""
    job = json.loads((ROOT / "docs/job.schema.json").read_text(encoding="utf-8"))
    for reference in references(DOCUMENT):
        name, _, place = reference.partition("#")
        found = {"": DOCUMENT, "job.schema.json": job}[name]
        for part in filter(None, place.split("/")):
            found = found[part]


def test_its_names_are_the_workers() -> None:
    """Queues, exchange, addresses, methods, headers, codes, milestones and the version."""
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert DOCUMENT["info"]["version"] == settings["DEFAULT"]["version"]
    names = {name: channel["address"] for name, channel in DOCUMENT["channels"].items()}
    assert (
        names
        == {
            "jobs": QUEUE_NAME,
            "control": control_exchange(QUEUE_NAME),
            "deadLetters": dead_letters(QUEUE_NAME),
        }
        | webhook_urls("")._asdict()
    )
    for channel in DOCUMENT["channels"].values():
        for kind in ("queue", "exchange"):
            bound = channel.get("bindings", {}).get("amqp", {}).get(kind, {})
            assert bound.get("name", channel["address"]) == channel["address"]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.error_code for kind in kinds if issubclass(kind, errors.StylegenError)}
    assert set(COMPONENTS["schemas"]["errorCode"]["enum"]) == codes
    headers = {ATTEMPT, REDELIVERIES, REDRIVES, ERROR_CODE, ERROR, EXPIRATION}
    assert set(COMPONENTS["messages"]["deadLetter"]["headers"]["properties"]) == headers
    progress = COMPONENTS["messages"]["progress"]["payload"]["properties"]["progress"]
    assert progress["properties"]["progress_percent"]["enum"] == list(MILESTONES)
    webhook = COMPONENTS["schemas"]["webhookHeaders"]
    assert {name: webhook["properties"][name].get("const") for name in HEADERS} == HEADERS


@pytest.mark.parametrize("secret", ["", SECRET])
def test_webhooks_are_as_it_says(secret: str) -> None:
    """Method, address, headers and body of each, as a receiver gets them."""
    with WebhookReceiver() as backend:
        urls, auth = webhook_urls(backend.url), {"token": TOKEN, "secret": secret}
        send_progress(urls.progress, 500, 13, 50, progress_percent=25, estimated_seconds=4, **auth)
        metadata = {"scheduler": "euler", "width": 512, "height": 512}
        result = "https://a.example/gen_500.jpg"
        send_complete_webhook(urls.complete, 500, result, 42, metadata=metadata, **auth)
        send_failed_webhook(urls.failed, "a-b", "no LoRA", error_code="LORA_NOT_FOUND", **auth)
    operations = {
        operation["channel"]["$ref"].rpartition("/")[2]: operation
        for operation in DOCUMENT["operations"].values()
    }
    properties = COMPONENTS["schemas"]["webhookHeaders"]["properties"]
    signature = {name for name in properties if name.startswith("webhook-")}
    for webhook in backend.received:
        assert operations[webhook.event]["bindings"]["http"]["method"] == webhook.method
        assert DOCUMENT["channels"][webhook.event]["address"] == webhook.path
        message_validator(webhook.event).validate(webhook.body)
        message_validator(webhook.event, "headers").validate(webhook.headers)
        names = {name for name in webhook.headers if name.startswith("webhook-")}
        assert names == (signature if secret else set())


@pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_pages_examples_are_as_it_says(name: str, text: str) -> None:
    """And a copy with a wrong id is not."""
    example = json.loads(text)
    message_validator(name).validate(example)
    assert not message_validator(name).is_valid(example | {"generation_id": "../x"})
