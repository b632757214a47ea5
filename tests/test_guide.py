"""The code guide's own calls, as the guide writes them, with the guide's variables.

`CODE_GUIDE.ko.md` beside this file is the platform's code guide.
"""

import ast
import importlib
import inspect
import json
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from shutil import copy
from typing import Any

import pika
import pytest
import requests
from conftest import TOKEN
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from packaging.version import Version
from PIL import Image, ImageChops
from rabbit import Broker, VirtualHost
from s3_server import S3Server

from stylegen import job
from stylegen.job import DeviceLost, LoraInvalid, StylegenError, WorkerError
from stylegen.pipeline import generate, generate_image
from stylegen.pipeline.engine import Engine
from stylegen.queue import publish_job, start_rabbitmq_consumer
from stylegen.settings import Settings
from stylegen.signature import add_watermark, create_text_overlay, get_position
from stylegen.storage import upload_image_to_s3
from stylegen.webhook import (
    WebhookReceiver,
    send_complete_webhook,
    send_failed_webhook,
    send_progress,
)
from stylegen.worker import flow, handle_generation_task

ROOT = Path(__file__).parent.parent
GUIDE = Path(__file__).with_name("CODE_GUIDE.ko.md").read_text(encoding="utf-8")
FUNCTION_HEADS = "function", "from", "what differs"
CALLED_ONLY = "create_text_overlay", "get_position", "parse_s3_url"
"""What the guide calls, and leaves to the reader."""
ANSWERED = {
    **{"0": 2, "1.1": 2, "1.2": 1, "1.3": 6, "2.1": 19, "2.2": 2, "3.1": 10, "3.2": 7},
    **{"4.1": 4, "4.2": 7, "5.1": 6, "5.2": 6, "6.1": 2, "6.2": 1, "6.3": 2, "7.1": 1, "7.2": 1},
    "refs": 6,
}
"""How many different points of each part the page answers: a block holds more than one."""
LIMIT = 25.0
"""Seconds after which a consumer is told to stop, whatever it has done."""


# Section 7, unchanged but for the import lines


def test_add_watermark():
    """워터마크 삽입 테스트."""
    image = Image.new("RGB", (512, 512), color="white")

    watermarked = add_watermark(image, artist_name="TestArtist", opacity=128)

    assert watermarked.size == (512, 512)
    assert watermarked.mode == "RGB"
    # 워터마크가 추가되어 이미지가 변경되었는지 확인
    assert watermarked != image


def test_webhook_complete(mocker):
    """완료 Webhook 전송 테스트."""
    mock_post = mocker.patch("requests.post")

    send_complete_webhook(
        url="http://localhost:8000/api/webhooks/inference/complete",
        generation_id=500,
        result_url="https://s3.../gen_500.jpg",
        seed=42,
    )

    assert mock_post.called
    assert mock_post.call_args[1]["json"]["generation_id"] == 500
    assert mock_post.call_args[1]["json"]["metadata"]["seed"] == 42


# Section 3: the consumer


def consume(queue: str, callback: Any, stop: threading.Event) -> None:
    """The guide's call; where nothing sets `stop` it returns nevertheless, and assertions fail."""
    limit = threading.Timer(LIMIT, stop.set)
    limit.start()
    try:
        start_rabbitmq_consumer(queue, callback=callback, stop=stop)
    finally:
        limit.cancel()


@pytest.fixture(name="rabbit", scope="module")
def _rabbit() -> Iterator[Broker]:
    """The virtual host of those who name none."""
    with VirtualHost("/") as host:
        yield host


@pytest.fixture(name="queue")
def _queue(rabbit: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A queue with a place for dead letters, on the broker of `RABBITMQ_HOST`, port 5672."""
    name, look_up = f"test-{uuid.uuid4().hex}", socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **options: Any) -> Any:
        if (host, port) == ("broker.example.com", 5672):
            host, port = "127.0.0.1", rabbit.port
        return look_up(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("RABBITMQ_HOST", "broker.example.com")
    monkeypatch.delenv("RABBITMQ_URL", raising=False)
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}.rejected"}
    connection.channel().queue_declare(name, durable=True, arguments=arguments)
    connection.channel().queue_declare(f"{name}.rejected", durable=True)
    yield name
    connection.close()


def test_the_callback_gets_a_dictionary(
    rabbit: Broker, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be read or makes it raise is dead-lettered, and the consumer goes on."""
    taken, stop = [], threading.Event()

    def callback(message: dict[str, Any]) -> None:
        taken.append(message)
        if message["generation_id"] < 3:
            raise [ConnectionRefusedError("a prompt"), KeyError("a prompt")][len(taken) - 1]
        stop.set()

    jobs = [
        b'{"generation_id": %d, "artist_name": "\xea\xb9\x80"}' % number for number in (1, 2, 3)
    ]
    bad = [b"not json", b"\xff", b"", b"[500]", b'{"generation_id": ']
    for body in [*bad, *jobs]:
        publish_job(body, url=rabbit.url, queue_name=queue)
    consume(queue, callback, stop)
    assert taken == [json.loads(body) for body in jobs]
    assert [body for _, body in rabbit.take_all(f"{queue}.rejected")] == [*bad, *jobs[:2]]
    assert rabbit.queue_state(queue) == (0, 0)
    assert caplog.text.count("a message is rejected: ") == 7
    assert "ConnectionRefusedError" in caplog.text and "a prompt" not in caplog.text


def test_a_rejected_message_is_gone_where_the_queue_has_no_target(
    rabbit: Broker, queue: str
) -> None:
    plain, stop, taken = f"{queue}.plain", threading.Event(), []
    publish_job(b"not json", url=rabbit.url, queue_name=plain)
    publish_job(b"{}", url=rabbit.url, queue_name=plain)
    consume(plain, lambda message: [taken.append(message), stop.set()], stop)
    assert taken == [{}]
    assert rabbit.queue_state(plain) == (0, 0)


def test_a_process_that_can_do_nothing_rejects_nothing(rabbit: Broker, queue: str) -> None:
    """A lost GPU would empty the queue; the consumer ends, and the message stays."""

    def callback(_: dict[str, Any]) -> None:
        raise DeviceLost("the GPU is gone")

    publish_job(b"{}", url=rabbit.url, queue_name=queue)
    with pytest.raises(DeviceLost):
        consume(queue, callback, threading.Event())
    assert rabbit.queue_state(queue) == (1, 0)


@pytest.fixture(name="variables")
def _variables(
    s3: S3Server, pocket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> pytest.MonkeyPatch:
    """The guide's variables, and where this machine's bucket and model are."""
    for name in Settings.model_fields:
        if name != "rabbitmq_host":
            monkeypatch.delenv(name.upper(), raising=False)
    own = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": s3.endpoint_url,
        "S3_BUCKET": "stylelicense-images",
        "INTERNAL_API_TOKEN": TOKEN,
        "STYLEGEN_MODEL": str(pocket / "pocket"),
        "STYLEGEN_DEVICE": "cpu",
        "STYLEGEN_CACHE_FOLDER": str(tmp_path / "cache"),
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    client = s3.client()
    for bucket in ("models", "stylelicense-images"):
        client.create_bucket(Bucket=bucket)
    client.upload_file(
        str(pocket / "models/style_10.safetensors"), "models", "style_10.safetensors"
    )
    return monkeypatch


def test_the_guides_handler_is_a_callback(
    rabbit: Broker,
    queue: str,
    variables: pytest.MonkeyPatch,
    backend: WebhookReceiver,
    order: dict[str, Any],
    engine: Engine,
) -> None:
    """`start_rabbitmq_consumer(callback=handle_generation_task)`; one variable more is needed."""
    variables.setattr("stylegen.worker.wiring.load_engine", lambda *_, **__: engine)
    flow._default_parts.cache_clear()
    body = json.dumps(order).encode()
    publish_job(body, url=rabbit.url, queue_name=queue)
    with pytest.raises(WorkerError, match="WEBHOOK_ALLOWED_ORIGINS"):
        consume(queue, handle_generation_task, threading.Event())
    assert rabbit.queue_state(queue) == (1, 0)
    variables.setenv("WEBHOOK_ALLOWED_ORIGINS", backend.url)
    stop = threading.Event()
    backend.answer = lambda webhook: [200, stop.set()][0] if webhook.event == "complete" else 200
    consume(queue, handle_generation_task, stop)
    flow._default_parts.cache_clear()
    (complete,) = backend.of("complete")
    assert complete.body["result_url"].endswith("/stylelicense-images/generations/gen_500.jpg")
    assert complete.headers["Authorization"] == f"Bearer {TOKEN}"
    assert rabbit.queue_state(queue) == rabbit.queue_state(f"{queue}.rejected") == (0, 0)


# Sections 1 and 2: the picture


@pytest.mark.parametrize("name", ["pytorch_lora_weights", "watercolour"])
def test_generate_image_draws_with_the_environments_model(
    name: str,
    variables: pytest.MonkeyPatch,
    engine: Engine,
    pocket: Path,
    tmp_path: Path,
    backend: WebhookReceiver,
) -> None:
    """`STYLEGEN_MODEL`, once; the LoRA's path is a folder, as diffusers saves one."""
    loaded: list[Any] = []
    load = generate.load_engine
    variables.setattr(generate, "_resident", {})
    variables.setattr(generate, "load_engine", lambda settings: loaded.append(settings) or engine)
    lora = pocket / "models/style_10.safetensors"
    copy(lora, tmp_path / f"{name}.safetensors")
    common = {"style_id": 10, "prompt_tags": ["red", "heart"], "num_inference_steps": 2}
    drawn = [
        generate_image(
            lora_model_path=str(path), webhook_url=backend.url, generation_id=5, **common
        )
        for path in (tmp_path, lora)
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    (settings,) = loaded
    assert settings.stylegen_model == str(pocket / "pocket")
    assert len(backend.of("")) == 10
    if name == "watercolour":
        other = load(settings)
        assert generate_image(lora_model_path=str(lora), engine=other, **common) == drawn[0]
        other.close()


def test_a_folder_that_names_no_lora_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(LoraInvalid, match="0 LoRA files"):
        generate_image(10, str(tmp_path), ["red"], engine=engine)


def test_the_pipelines_scheduler_is_the_default(engine: Engine, pocket: Path) -> None:
    """`pipeline.scheduler = …` before drawing is honoured, or refused aloud."""
    pipeline, lora = engine.pipeline, str(pocket / "models/style_10.safetensors")
    own = pipeline.scheduler

    def draw(**options: Any) -> bytes:
        common = {"num_inference_steps": 3, "engine": engine}
        return generate_image(10, lora, ["red", "heart"], **common | options).tobytes()

    assert isinstance(own, DPMSolverMultistepScheduler)
    multistep, euler = draw(scheduler="dpmsolver++"), draw(scheduler="euler")
    assert draw() == multistep != euler
    try:
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        assert (draw(), draw(scheduler="dpmsolver++")) == (euler, multistep)
        pipeline.scheduler = EulerDiscreteScheduler.from_config(own.config, use_karras_sigmas=True)
        assert draw() not in (euler, multistep)
        pipeline.scheduler = DDIMScheduler.from_config(own.config)
        assert draw() == draw(scheduler="ddim") not in (euler, multistep)
        pipeline.scheduler = DDIMScheduler.from_config(own.config, clip_sample=True)
        with pytest.raises(ValueError, match="DDIMScheduler is not linear"):
            draw()
        assert draw(scheduler="euler") == euler
    finally:
        pipeline.scheduler = own


@pytest.mark.parametrize("size", [(512, 512), (768, 768), (512, 1024)])
@pytest.mark.parametrize("position", ["bottom-right", "bottom-left", "top-right", "top-left"])
@pytest.mark.parametrize("name", ["김하늘", "TestArtist", "Very Long Named Society of Painters"])
def test_an_overlay_is_inside_the_picture(name: str, position: Any, size: tuple[int, int]) -> None:
    """The guide's own body of `add_watermark`: each pixel of ink, in the corner's quarter."""
    image = Image.new("RGB", size, "white")
    watermark = create_text_overlay(name, 255)
    image.paste(watermark, get_position(image.size, position), watermark)
    changed = ImageChops.difference(image, Image.new("RGB", size, "white")).convert("L")
    alone = Image.new("RGB", watermark.size, "white")
    alone.paste(watermark, (0, 0), watermark)
    ink = ImageChops.difference(alone, Image.new("RGB", alone.size, "white")).convert("L")
    assert sum(changed.histogram()[1:]) == sum(ink.histogram()[1:]) > 0
    left, top, right, bottom = changed.getbbox() or (0, 0, 0, 0)
    vertical, horizontal = position.split("-")
    assert (right <= size[0] / 2) if horizontal == "left" else (left >= size[0] / 2)
    assert (bottom <= size[1] / 2) if vertical == "top" else (top >= size[1] / 2)


def test_a_picture_is_uploaded(s3: S3Server, variables: pytest.MonkeyPatch) -> None:
    """By the guide's call, with the guide's key, quality and type."""
    url = upload_image_to_s3(Image.new("RGB", (64, 64), "teal"), 501)
    stored = s3.client().get_object(Bucket="stylelicense-images", Key="generations/gen_501.jpg")
    assert stored["ContentType"] == "image/jpeg" and url.endswith("/generations/gen_501.jpg")


# Section 5: webhooks


@pytest.mark.parametrize(
    ("step", "total", "percent", "seconds"),
    [
        (10, 50, 20, 4),
        (0, 50, 0, 5),
        (50, 50, 100, 0),
        (0, 0, 0, 0),
        (60, 50, 100, 0),
        (3, 0, 0, 0),
    ],
)
def test_progress_is_estimated(
    backend: WebhookReceiver, step: int, total: int, percent: int, seconds: int
) -> None:
    """A tenth of a second a step, as in the guide; of no steps nothing is done."""
    assert send_progress(backend.url, 500, step, total)
    progress = backend.received[0].body["progress"]
    assert progress == {
        "current_step": step,
        "total_steps": total,
        "progress_percent": percent,
        "estimated_seconds": seconds,
    }


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "WEBHOOK_REFUSED"),
        (302, "WEBHOOK_REFUSED"),
        (500, "WEBHOOK_FAILED"),
        (None, "WEBHOOK_UNANSWERED"),
    ],
)
def test_terminal_senders_raise_what_requests_raises(
    status: int | None, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal, a failure and silence: who catches `requests.RequestException` catches each."""
    monkeypatch.setattr("stylegen.webhook.delivery.ATTEMPTS", 1)
    with WebhookReceiver(lambda webhook: status or 200) as backend:
        url = backend.url if status else "http://127.0.0.1:1"
        sent = (
            partial(send_complete_webhook, url, 500, "https://cdn/500.jpg", 42),
            partial(send_failed_webhook, url=url, generation_id=500, error="no"),
        )
        for send in sent:
            with pytest.raises(requests.RequestException, match="127.0.0.1") as caught:
                send()
            assert isinstance(caught.value, StylegenError) and caught.value.error_code == code


# The page for those who come from the guide


def guide_parts() -> dict[str, str]:
    """The guide's text by number; ``0`` is its head, ``refs`` its end, contents are left out."""
    heads = re.split(r"^(#+ .*)$", GUIDE, flags=re.MULTILINE)
    parts, number = {"0": ""}, "0"
    for head, text in zip(["# ", *heads[1::2]], heads[0::2], strict=True):
        words = head.lstrip("# ").split(" ")
        if re.fullmatch(r"[\d.]+", words[0]):
            number = words[0].rstrip(".")
        elif head.startswith("## "):
            number = {"목차": "", "참고 문서": "refs"}[head.removeprefix("## ")]
        parts[number] = parts.get(number, "") + text
    return {number: text for number, text in parts.items() if number and text.strip("-\n ")}


def page_tables() -> list[list[list[str]]]:
    """Each table of the page: its rows' cells, with their heads."""
    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[re.split(r" *\| *", row[1:-1].strip()) for row in t.splitlines()] for t in tables]


def table(*heads: str) -> list[list[str]]:
    """The rows of the page's table with these heads."""
    (rows,) = [rows for rows in page_tables() if tuple(rows[0]) == heads]
    return rows[2:]


def quotes() -> dict[str, list[str]]:
    """What the page quotes of each part."""
    found: dict[str, list[str]] = {}
    for number, quoted, here in table("§", "guide", "here"):
        assert re.fullmatch("`[^`]+`", quoted), quoted
        assert re.match("(kept|mended|left out)\\b", here), here
        found.setdefault(number, []).append(quoted.strip("`"))
    return found


def test_each_quote_is_the_guides() -> None:
    """And stands in the part that the page says."""
    parts = guide_parts()
    for number, quoted in quotes().items():
        plain = parts[number].replace("**", "")
        assert not [quote for quote in quoted if quote not in plain]


def test_each_point_has_its_row() -> None:
    """Whichever row is taken out, its part has one point fewer."""
    assert {number: len(set(quoted)) for number, quoted in quotes().items()} == ANSWERED


def test_each_file_has_its_row() -> None:
    """The guide's modules, in its order, and the handler, which has no file of its own there."""
    modules = re.findall(r"── (?!test_)(\w+\.py)", GUIDE)
    rows = table("guide", "here", "notebook")
    assert sorted(theirs.split("`")[-2] for theirs, *_ in rows[:-1]) == sorted(modules)
    assert rows[-1][0] == "handler in `rabbitmq_consumer.py`"
    for _, here, notebooks in rows:
        for name in re.findall("`(stylegen.+?)`", here):
            importlib.import_module(name)
        for name in re.findall("`(.+?)`", notebooks):
            assert (ROOT / f"nbs/{name}.ipynb").exists()


@pytest.mark.parametrize("number", guide_parts())
def test_each_sentence_and_block_has_its_row(number: str) -> None:
    """Each line of prose, each block, and in a block each function and variable."""
    quoted, text = quotes()[number], guide_parts()[number]
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.replace("**", "") for line in prose.splitlines() if line.strip("- ")]
    wanted = [line for line in lines if line != "핵심 원칙:"] + blocks
    for block in blocks:
        wanted += re.findall(r"^ *def \w+\(", block, re.MULTILINE)
        wanted += re.findall(r"os\.getenv\(.*?\)", block)
    everywhere = [quote for each in quotes().values() for quote in each]
    for text in wanted:
        known = everywhere if text.startswith("os.getenv") else quoted
        assert [q for q in known if q in text or text.strip() in q], text


def test_the_guides_functions_are_ours() -> None:
    """Same names, same leading parameters, same defaults; the page says what differs."""
    listed = {name.strip("`"): room.strip("`") for name, room, _ in table(*FUNCTION_HEADS)}
    defined = re.findall(r"^def (\w+)\((.*?)\) ->", GUIDE, re.MULTILINE | re.DOTALL)
    assert set(listed) == {name for name, _ in defined} | {*CALLED_ONLY}
    for name, room in listed.items():
        assert name in GUIDE and callable(getattr(importlib.import_module(room), name))
    for name, given in defined:
        theirs = re.findall(r"(\w+)\s*:[^,=]+(?:\[[^\]]*\])?(?:\s*=\s*([^,\n]+))?", given)
        ours = inspect.signature(getattr(importlib.import_module(listed[name]), name)).parameters
        leading = [each for each in ours.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
        for (parameter, default), own in zip(theirs, leading, strict=False):
            assert own.name == parameter, name
            assert default == "" or ast.literal_eval(default) == own.default, (name, parameter)
        assert len(leading) >= len(theirs)


def test_the_guides_variables_are_settings() -> None:
    """Each variable that the guide reads, with the guide's default."""
    for name, default in re.findall(r"os\.getenv\([\"'](\w+)[\"'](?:, \"(.*?)\")?\)", GUIDE):
        field = Settings.model_fields[name.lower()]
        assert default == "" or field.default == default


def test_versions_are_those_that_are_asked_for() -> None:
    """The page's floors are the guide's and `settings.ini`'s, and ours are no lower."""
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    ours = dict(re.findall(r"(\S+)>=(\S+)", settings["DEFAULT"]["requirements"]))
    theirs = dict(re.findall(r"^(\w+)>=([\d.]+)$", GUIDE, re.MULTILINE))
    rows = table("library", "guide", "here")
    assert {name: (guide, here) for name, guide, here in rows} == {
        name: (version, ours[name]) for name, version in theirs.items()
    }
    assert all(Version(here) >= Version(guide) for _, guide, here in rows)


def test_exceptions_are_what_the_page_says() -> None:
    """Those that the functions' own documentation names, by whom, and what they are also."""
    rows = table("exception", "is also", "raised by")
    said = {name.strip("`"): raised_by for name, _, raised_by in rows}
    documented = {"StylegenError"}  # what nearly all are
    for function, room, _ in table(*FUNCTION_HEADS):
        called = getattr(importlib.import_module(room.strip("`")), function.strip("`"))
        raised = re.findall(r"^ +(\w+): ", (called.__doc__ or "").partition("Raises:")[2], re.M)
        for name in set(raised) & set(vars(job)):
            assert function in said[name]
            documented.add(name)
    assert set(said) == documented
    for name, also, _ in rows:
        kinds = {kind.__name__: kind for kind in getattr(job, name.strip("`")).__mro__}
        assert also.strip("`").removeprefix("requests.") in kinds
