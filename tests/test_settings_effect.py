"""Every setting does what its line in the README says; a setting without a row here fails.

A row is a function: it sets the variable, as an operator would, and looks at what has changed.
Jobs are done by the worker's own wiring; only the engine is a painter, where drawing is not asked.
"""

# pylint: disable=protected-access,not-an-iterable,unsupported-membership-test

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import c2pa
import matplotlib
import pika
import pytest
from certificates import server_context, tls_receiver, write_chain
from conftest import TOKEN
from cryptography import x509
from painter import Painter, consuming
from pika.exceptions import AMQPConnectionError
from rabbit import Broker, free_ports
from s3_server import S3Server
from standardwebhooks import Webhook
from waiting import wait_until

from stylegen.errors import Unfit
from stylegen.job import InvalidMessage, WebhookUnanswered
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.batched_lora import MergedLora
from stylegen.queue import publish_job
from stylegen.settings import (
    SD15,
    SD15_REVISION,
    Settings,
    SettingsError,
    load_settings,
    settings_help,
    settings_table,
)
from stylegen.signature.provenance import read_job, read_provenance
from stylegen.storage import FolderStore
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Metrics, Outcome, check_machine, handle_generation_task, main
from stylegen.worker import make_parts, make_store

DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
LORA = b"tensors of an artist"


class World:
    """What a row works with.

    Attributes:
        painter: Stands for the engine.
        order: A valid job; its LoRA is in the folder `bucket`.
    """

    def __init__(self, request: pytest.FixtureRequest, folder: Path, order: dict[str, Any]) -> None:
        self._request, self.folder, self.order = request, folder, order
        self.monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        self.backend: WebhookReceiver = request.getfixturevalue("backend")
        self.painter = Painter()
        self.bucket = folder / "bucket"
        FolderStore(self.bucket).put("models/style_10.safetensors", LORA, "")
        self.model = folder / "model"  # a folder's, lest somebody asks the model hub
        self.model.mkdir()
        (self.model / "model_index.json").write_text("{}", "ascii")
        self.monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", lambda *_, **__: None)
        self.monkeypatch.setattr("stylegen.pipeline.resident.Engine", self.painter)
        self.monkeypatch.setattr(
            "stylegen.worker.consumer.start_watchdog", lambda _: None
        )  # it would end the tests

    @property
    def rabbit(self) -> Broker:
        """The broker."""
        return self._request.getfixturevalue("rabbit")

    @property
    def s3(self) -> S3Server:
        """The S3 server."""
        return self._request.getfixturevalue("s3")

    @property
    def pocket(self) -> Path:
        """The folder with the packaged model."""
        return self._request.getfixturevalue("pocket")

    def settings(self, **variables: Any) -> Settings:
        """Read the settings from an environment of these variables; an empty one is not set.

        The variables are gone afterwards: no library reads them beside us.
        """
        usual = {
            "internal_api_token": TOKEN,
            "webhook_allowed_origins": self.backend.url,
            "stylegen_storage_folder": self.bucket,
            "stylegen_cache_folder": self.folder / "cache",
            "stylegen_device": "cpu",
            "stylegen_model": self.model,
        }
        with self.monkeypatch.context() as context:
            for name in Settings.model_fields:
                context.delenv(name.upper(), raising=False)
            for name, value in (usual | variables).items():
                context.setenv(name.upper(), str(value))
            return load_settings()

    def do(self, settings: Settings, **changes: Any) -> Outcome:
        """Do a job with the worker's parts."""
        return handle_generation_task(self.order | changes, make_parts(settings))

    def picture(self, settings: Settings, **changes: Any) -> bytes:
        """The stored picture of a job that must succeed."""
        outcome = self.do(settings, **changes)
        assert outcome.error_code is None, outcome.error_message
        return (self.bucket / "generations/gen_500.jpg").read_bytes()

    def on_broker(self, **variables: Any) -> Settings:
        """Settings of a consumer on a queue of its own."""
        own = {"rabbitmq_url": self.rabbit.url, "stylegen_queue": f"test-{uuid.uuid4().hex}"}
        return self.settings(**own | variables)

    def send(self, settings: Settings, **changes: Any) -> None:
        """Publish a job on the consumer's queue."""
        body = json.dumps(self.order | changes).encode()
        publish_job(body, url=self.rabbit.url, queue_name=settings.stylegen_queue)

    def event(self, name: str) -> dict[str, Any]:
        """The body of the first webhook of a kind; waits for it."""
        first, *_ = self.backend.wait_for(1, name, timeout=30) or [None]
        assert first is not None, f"no {name} came"
        return dict(first.body)

    def load(self, settings: Settings, *, cuda: bool = False) -> MagicMock:
        """What diffusers is asked for, on a machine with or without CUDA: its loader's calls."""
        loader = MagicMock()
        loader.return_value.scheduler.config = {}
        self.monkeypatch.setattr("diffusers.StableDiffusionPipeline.from_pretrained", loader)
        self.monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
        self.monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", load_pipeline)
        make_parts(settings)
        return loader

    def load_pocket(self, **variables: Any) -> Any:
        """The packaged model as the engine gets it."""
        self.monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", load_pipeline)
        make_parts(self.settings(stylegen_model=self.pocket / "pocket", **variables))
        return self.painter.pipeline

    def requests(self, **variables: Any) -> list[Any]:
        """What a store asks an S3 server when it reads: requests as they go over the wire."""
        store, asked = make_store(self.on_s3(**variables)), []
        events = store.client.meta.events  # type: ignore[attr-defined]
        events.register("before-send.s3", lambda request, **_: asked.append(request))
        assert store.read("none") is None
        return asked

    def on_s3(self, **variables: Any) -> Settings:
        """Settings of a worker with a bucket, which exists."""
        own = {
            "stylegen_storage_folder": "",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "aws_region": "us-east-1",
            "aws_endpoint_url_s3": self.s3.endpoint_url,
        }
        settings = self.settings(**own | variables)
        client = self.s3.client()
        for bucket in (settings.s3_bucket, "models"):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket="models", Key="style_10.safetensors", Body=LORA)
        return settings


@pytest.fixture(name="world")
def _world(
    request: pytest.FixtureRequest, tmp_path: Path, order: dict[str, Any]
) -> Iterator[World]:
    import torch

    threads = torch.get_num_threads()
    yield World(request, tmp_path, order)
    torch.set_num_threads(threads)


# Webhooks


def _internal_api_token(world: World) -> None:
    world.picture(world.settings(internal_api_token="a-token-of-ours"))
    sent = {hook.headers["Authorization"] for hook in world.backend.received}
    assert sent == {"Bearer a-token-of-ours"}


def _webhook_secret(world: World) -> None:
    secret = "whsec_c3R5bGVnZW4tdGVzdC1zZWNyZXQtMDEyMzQ1Njc4OQ=="
    world.picture(world.settings(webhook_secret=secret))
    assert world.backend.received
    for hook in world.backend.received:
        assert Webhook(secret).verify(hook.raw, hook.headers) == hook.body
    world.backend.received.clear()
    world.picture(world.settings())
    assert not [hook for hook in world.backend.received if "webhook-signature" in hook.headers]


def _webhook_allowed_origins(world: World) -> None:
    both = f"https://api.example.com, {world.backend.url}"
    world.picture(world.settings(webhook_allowed_origins=both))
    with pytest.raises(InvalidMessage):
        world.do(world.settings(webhook_allowed_origins="https://api.example.com"))
    asked = check_machine(world.settings(webhook_allowed_origins=both))["webhooks"].splitlines()
    assert [origin in line for origin, line in zip(both.split(", "), asked, strict=True)] == [
        True
    ] * 2


def _requests_ca_bundle(world: World) -> None:
    chain, key = write_chain(world.folder, "127.0.0.1")
    with tls_receiver(server_context(chain, key)) as backend:
        settings = world.settings(webhook_allowed_origins=backend.url, requests_ca_bundle=chain)
        changes = {"webhook_url": backend.url}
        with pytest.raises(WebhookUnanswered, match="SSLError"):
            world.do(settings, **changes)
        world.monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(chain))
        world.picture(settings, **changes)
    with pytest.raises(SettingsError, match="REQUESTS_CA_BUNDLE: .*no such file"):
        world.settings(requests_ca_bundle=world.folder / "none.pem")


# The queue


def _asked_brokers(world: World, settings: Settings) -> tuple[str, int]:
    """Where a consumer and ``--check`` look for a broker."""
    asked: list[tuple[str, int]] = []

    def refuse(parameters: pika.ConnectionParameters, **_: Any) -> None:
        asked.append((parameters.host, parameters.port))
        raise AMQPConnectionError

    world.monkeypatch.setattr("pika.BlockingConnection", refuse)
    with consuming(settings, world.painter):
        wait_until(lambda: asked)
    assert check_machine(settings)["broker"].startswith("no:")
    assert len(set(asked)) == 1
    return asked[0]


def _rabbitmq_host(world: World) -> None:
    settings = world.settings(rabbitmq_host="broker.example.com")
    assert _asked_brokers(world, settings) == ("broker.example.com", 5672)
    assert _asked_brokers(world, world.settings()) == ("localhost", 5672)


def _rabbitmq_url(world: World) -> None:
    settings = world.on_broker(rabbitmq_host="broker.example.com")
    world.send(settings)
    with consuming(settings, world.painter):
        assert world.event("complete")
    assert check_machine(settings)["broker"] == "reachable"
    settings = world.settings(rabbitmq_url="amqps://u:p@broker.example.com:5679/x")
    assert _asked_brokers(world, settings) == ("broker.example.com", 5679)


def _stylegen_queue(world: World) -> None:
    settings = world.on_broker()
    name = settings.stylegen_queue
    world.send(settings)
    publish_job(b"for nobody", url=world.rabbit.url, queue_name=name)
    with consuming(settings, world.painter):
        assert world.event("complete")
        wait_until(lambda: world.rabbit.queue_states().get(f"{name}.dead") == (1, 0))
    assert world.rabbit.queue_state(name) == (0, 0)
    assert world.settings().stylegen_queue == "image_generation"


def _in_hand(world: World, most: int, **variables: Any) -> None:
    """Of more jobs, `most` are drawn at a time, and the others are left in the queue."""
    settings = world.on_broker(**variables)
    world.painter.begun.clear()
    world.painter.gate.clear()
    for number in range(1, most + 3):
        world.send(settings, generation_id=f"{settings.stylegen_queue}-{number}")
    with consuming(settings, world.painter):
        wait_until(lambda: len(world.painter.begun) >= most)
        assert world.rabbit.queue_state(settings.stylegen_queue) == (2, most)
        assert len(world.painter.begun) == most


def _stylegen_prefetch(world: World) -> None:
    _in_hand(world, 3, stylegen_prefetch=3, stylegen_batch=1)


def _stylegen_batch(world: World) -> None:
    _in_hand(world, 8, stylegen_batch=2)  # four times as many, unless asked otherwise
    _in_hand(world, 16)
    world.monkeypatch.undo()
    model = {"stylegen_model": world.pocket / "pocket", "stylegen_storage_folder": world.pocket}
    parts, rows = make_parts(world.settings(stylegen_batch=2, **model)), []
    engine = parts.draw.__self__  # type: ignore[attr-defined]
    engine.pipeline.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    orders = [world.order | {"generation_id": number} for number in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda order: handle_generation_task(order, parts), orders))
    engine.close()
    assert not [outcome.error_code for outcome in outcomes if outcome.error_code]
    assert max(rows) == 4  # two pictures, each with its negative prompt


def _stylegen_retry_delays(world: World) -> None:
    settings = world.on_broker(stylegen_retry_delays="600, 700")
    (world.bucket / "generations").write_text("a file where a folder must be", "ascii")
    world.send(settings)
    body, name = json.dumps(world.order | {"generation_id": 2}).encode(), settings.stylegen_queue
    for attempt in (1, 2):
        headers = {"x-stylegen-attempt": attempt}
        publish_job(body, url=world.rabbit.url, queue_name=name, headers=headers)
    with consuming(settings, world.painter):
        failed = world.event("failed")
        wait_until(lambda: world.rabbit.queue_states().get(f"{name}.dead") == (1, 0))
    assert (failed["error_code"], failed["retry_count"]) == ("RETRIES_EXHAUSTED", 2)
    states = world.rabbit.queue_states()
    assert [states[f"{name}.retry.{seconds}s"] for seconds in (600, 700)] == [(1, 0)] * 2


def _stylegen_max_redeliveries(world: World) -> None:
    for limit, event in ((4, "failed"), (5, "complete")):
        settings, name = world.on_broker(stylegen_max_redeliveries=limit), f"g{limit}"
        body = json.dumps(world.order | {"generation_id": name}).encode()
        headers = {"x-stylegen-redeliveries": 4}
        queue = settings.stylegen_queue
        publish_job(body, url=world.rabbit.url, queue_name=queue, headers=headers)
        connection = pika.BlockingConnection(pika.URLParameters(world.rabbit.url))
        assert connection.channel().basic_get(queue)[0]
        connection.close()  # in flight, as if this worker had died
        with consuming(settings, world.painter):
            assert world.event(event)["generation_id"] == name


# The process


def _stylegen_job_timeout(world: World) -> None:
    short = world.on_broker(stylegen_job_timeout=1e-6)
    world.send(short)
    with consuming(short, world.painter):
        failed = world.event("failed")
    assert (failed["error_code"], "1e-06 s" in failed["error_message"]) == ("TIMEOUT", True)
    outcome = world.do(world.settings(stylegen_job_timeout=2e-6))  # ``--job`` has it too
    assert "2e-06 s" in str(outcome.error_message)


def _stylegen_drain_timeout(world: World) -> None:
    world.monkeypatch.setattr("stylegen.worker.cli.load_settings", lambda: settings)
    settings, ended, codes = world.settings(stylegen_drain_timeout=0.2), threading.Event(), []
    world.monkeypatch.setattr(
        "stylegen.worker.consumer.exit_now", lambda *code: (codes.extend(code), end())
    )
    end = ended.set
    before = signal.getsignal(signal.SIGTERM)

    def consume(_: Settings, stop: threading.Event) -> None:
        assert signal.getsignal(signal.SIGTERM) != before
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(30) and stop.is_set()
        assert 0.2 <= time.monotonic() - began < 20

    world.monkeypatch.setattr("stylegen.worker.cli.consume", consume)
    assert main([]) == 0
    assert codes == [4]


def _log_level(world: World) -> None:
    for level in ("ERROR", "DEBUG"):
        settings = world.settings(log_level=level)
        world.monkeypatch.setattr(
            "stylegen.worker.cli.load_settings", lambda chosen=settings: chosen
        )
        assert main(["--cancel", "no id"]) == 2
        assert logging.getLogger("stylegen.worker").getEffectiveLevel() == getattr(logging, level)
        of_libraries = logging.ERROR if level == "ERROR" else logging.INFO
        assert logging.getLogger("PIL.PngImagePlugin").getEffectiveLevel() == of_libraries
    assert world.settings().log_level == "INFO"


def _live(address: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}:{port}/livez", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _stylegen_health_port(world: World) -> None:
    first, second = free_ports(2)
    settings = world.on_broker(stylegen_health_port=first)
    with consuming(settings, world.painter):
        wait_until(lambda: _live("127.0.0.1", first))
        assert not _live("127.0.0.1", second)
    assert not _live("127.0.0.1", first)
    world.monkeypatch.setattr("stylegen.worker.consumer.HealthServer", None)
    settings = world.on_broker()
    world.send(settings)
    with consuming(settings, world.painter):
        assert world.event("complete")  # without a port there is no server


def _stylegen_health_host(world: World) -> None:
    (port,) = free_ports(1)
    settings = world.on_broker(stylegen_health_port=port, stylegen_health_host="127.0.0.2")
    with consuming(settings, world.painter):
        wait_until(lambda: _live("127.0.0.2", port))
        assert not _live("127.0.0.1", port)


# Storage


def _s3_bucket(world: World) -> None:
    for name in ("pictures-of-ours", ""):
        settings = world.on_s3(s3_bucket=name)
        bucket = name or "stylelicense-images"
        url = world.do(settings, generation_id=f"in-{bucket}").result_url
        key = f"generations/gen_in-{bucket}.jpg"
        assert url == f"{world.s3.endpoint_url}/{bucket}/{key}"
        assert world.s3.client().head_object(Bucket=bucket, Key=key)["ContentType"] == "image/jpeg"


def _s3_public_url(world: World) -> None:
    outcome = world.do(world.on_s3(s3_public_url="https://cdn.example.com/pictures/"))
    assert outcome.result_url == "https://cdn.example.com/pictures/generations/gen_500.jpg"
    complete = world.event("complete")
    assert complete["result_url"] == outcome.result_url


def _s3_acl(world: World) -> None:
    for acl in ("public-read", "none"):
        store, sent = make_store(world.on_s3(s3_acl=acl)), []
        store.client.meta.events.register(  # type: ignore[attr-defined]
            "before-send.s3.PutObject", lambda request, **_: sent.append(request.headers)
        )
        store.put("generations/gen_acl.jpg", b"jpeg", "image/jpeg")
        assert sent[0].get("x-amz-acl", b"none") in (acl, acl.encode())


def _header(request: Any, name: str) -> str:
    value = request.headers.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)


def _aws_access_key_id(world: World) -> None:
    (request,) = world.requests(aws_access_key_id="AKIDOFOURS")
    assert "Credential=AKIDOFOURS/" in _header(request, "Authorization")


def _aws_secret_access_key(world: World) -> None:
    store = make_store(world.on_s3(aws_secret_access_key="a-secret-of-ours"))
    signer = store.client._request_signer  # type: ignore[attr-defined]
    assert signer._credentials.secret_key == "a-secret-of-ours"


def _aws_session_token(world: World) -> None:
    (request,) = world.requests(aws_session_token="a-session-of-ours")
    assert _header(request, "X-Amz-Security-Token") == "a-session-of-ours"


def _aws_region(world: World) -> None:
    (request,) = world.requests(aws_region="eu-west-3")
    assert "/eu-west-3/s3/aws4_request" in _header(request, "Authorization")


def _aws_endpoint_url_s3(world: World) -> None:
    (request,) = world.requests(aws_endpoint_url="http://127.0.0.1:1")
    assert request.url.startswith(world.s3.endpoint_url)


def _aws_endpoint_url(world: World) -> None:
    (request,) = world.requests(aws_endpoint_url_s3="", aws_endpoint_url=world.s3.endpoint_url)
    assert request.url.startswith(world.s3.endpoint_url)


def _stylegen_storage_folder(world: World) -> None:
    folder = world.folder / "another"
    shutil.copytree(world.bucket, folder)
    outcome = world.do(world.settings(stylegen_storage_folder=folder))
    assert outcome.result_url == (folder / "generations/gen_500.jpg").as_uri()
    assert (folder / "generations/gen_500.jpg").is_file()
    assert (
        check_machine(world.settings(stylegen_storage_folder="/dev/null/x"))["storage"][:3] == "no:"
    )


def _blobs(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("blobs/*")}


def _stylegen_cache_folder(world: World) -> None:
    world.picture(world.settings(stylegen_cache_folder=world.folder / "own"))
    name = f"{hashlib.sha256(LORA).hexdigest()}.safetensors"
    assert _blobs(world.folder / "own") == {name}
    world.monkeypatch.setenv("HOME", str(world.folder))
    for variables in ({"stylegen_cache_folder": "~/mine"}, {"stylegen_cache_folder": ""}):
        world.picture(world.settings(**variables))
    assert _blobs(world.folder / "mine") == _blobs(world.folder / ".cache/stylegen") == {name}


def _stylegen_cache_bytes(world: World) -> None:
    other = {"lora_model_url": "s3://models/other.safetensors", "style_id": 11}
    FolderStore(world.bucket).put("models/other.safetensors", b"of another" * 2, "")
    for size, kept in ((39, 1), (40, 2)):
        folder = world.folder / f"cache-{size}"
        own = {"stylegen_cache_folder": folder, "stylegen_cache_bytes": size}
        for changes in ({}, other):
            world.picture(world.settings(**own), **changes)
        assert len(_blobs(folder)) == kept
    assert world.settings().stylegen_cache_bytes == 21_474_836_480


# The model


def _hf_token(world: World) -> None:
    settings = world.settings(hf_token="hf_of_ours")
    assert world.load(settings).call_args.kwargs["token"] == "hf_of_ours"
    config = MagicMock()
    world.monkeypatch.setattr("diffusers.StableDiffusionPipeline.load_config", config)
    check_machine(settings)
    assert config.call_args.kwargs["token"] == "hf_of_ours"


def _stylegen_model(world: World) -> None:
    folder = world.folder / "a-model-of-ours"
    shutil.copytree(world.pocket / "pocket", folder)
    settings = world.settings(stylegen_model=folder)
    assert world.load(settings).call_args.args == (str(folder),)
    found = read_provenance(world.picture(settings))
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    assert found["model"] == "a-model-of-ours"
    assert found["model_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert check_machine(settings)["model"] == "a-model-of-ours"
    assert (
        world.settings(stylegen_model="").stylegen_model
        == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def _stylegen_model_revision(world: World) -> None:
    config = MagicMock()
    world.monkeypatch.setattr("diffusers.StableDiffusionPipeline.load_config", config)
    for model, revision, loaded in (
        (SD15, "", SD15_REVISION),
        (SD15, "refs/pr/7", "refs/pr/7"),
        ("owner/model", "", "main"),
        ("owner/model", "v1.0", "v1.0"),
    ):
        settings = world.settings(stylegen_model=model, stylegen_model_revision=revision)
        assert world.load(settings).call_args.kwargs["revision"] == loaded
        check_machine(settings)
        assert config.call_args.kwargs["revision"] == loaded


def _stylegen_device(world: World) -> None:
    import torch

    half, full = (torch.float16, "cuda"), (torch.float32, "cpu")
    for device, cuda, expected in (
        ("auto", True, half),
        ("auto", False, full),
        ("cpu", True, full),
        ("cuda", True, half),
    ):
        settings = world.settings(stylegen_device=device)
        loader = world.load(settings, cuda=cuda)
        assert loader.call_args.kwargs["torch_dtype"] == expected[0]
        loader.return_value.to.assert_called_once_with(expected[1])
        assert check_machine(settings)["device"] == expected[1]
    assert world.settings(stylegen_device="").stylegen_device == "auto"


def _stylegen_offload(world: World) -> None:
    ways = {
        "model": "enable_model_cpu_offload",
        "sequential": "enable_sequential_cpu_offload",
        "none": "to",
    }
    for way, method in ways.items():
        loader = world.load(world.settings(stylegen_offload=way, stylegen_device="auto"), cuda=True)
        called = [m for m in ways.values() if getattr(loader.return_value, m).called]
        assert called == [method]


def _stylegen_compile(world: World) -> None:
    world.monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "x")
    world.monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    make_parts(world.settings())
    assert (world.painter.options["compile_backend"], world.painter.warmed) == (None, 0)
    make_parts(world.settings(stylegen_compile=True))
    assert (world.painter.options["compile_backend"], world.painter.warmed) == ("inductor", 1)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(world.folder / "cache/compiled")


def _stylegen_merge_loras(world: World) -> None:
    for merged in (False, True):
        make_parts(world.settings(stylegen_merge_loras=merged))
        assert world.painter.options["merge_loras"] is merged
    world.monkeypatch.undo()
    own = {"stylegen_model": world.pocket / "pocket", "stylegen_merge_loras": True}
    parts = make_parts(world.settings(**own))
    rows = parts.draw.__self__.loop.active.batch.lora  # type: ignore[attr-defined]
    assert isinstance(rows, MergedLora)


def _attention(pipeline: Any) -> set[str]:
    return {type(layer).__name__ for layer in pipeline.unet.attn_processors.values()}


def _stylegen_attention_slicing(world: World) -> None:
    assert _attention(world.load_pocket()) == {"AttnProcessor2_0"}
    sliced = world.load_pocket(stylegen_attention_slicing=True)
    assert _attention(sliced) == {"SlicedAttnProcessor"}


def _stylegen_vae_tiling(world: World) -> None:
    assert not world.load_pocket().vae.use_tiling
    assert world.load_pocket(stylegen_vae_tiling=True).vae.use_tiling


def _stylegen_torch_threads(world: World) -> None:
    import torch

    make_parts(world.settings(stylegen_torch_threads=3))
    assert torch.get_num_threads() == 3
    make_parts(world.settings(stylegen_torch_threads=0))
    assert torch.get_num_threads() == 3


# The picture


def _stylegen_font(world: World) -> None:
    world.monkeypatch.setattr("stylegen.signature.fonts.FONT_FOLDERS", ())
    settings = world.settings(stylegen_font=DEJAVU)
    polish = {"artist_name": "Łukasz"}  # which the packaged font has not
    assert world.do(world.settings(), **polish).error_code == "SIGNATURE_UNRENDERABLE"
    assert world.do(settings, **polish).error_code is None
    answers = check_machine(settings)
    drawn, refused = answers["signatures"].split("; refused: ")
    assert "Greek" in drawn.split(", ") and "Emoji" in refused.split(", ")
    assert not set(drawn.split(", ")) & set(refused.split(", "))
    world.monkeypatch.setattr("stylegen.signature.fonts.packaged_font", lambda: None)
    assert world.do(settings).error_code == "SIGNATURE_UNRENDERABLE"  # Hangul
    world.picture(settings, artist_name="Zoë")


def _stylegen_label(world: World) -> None:
    with pytest.raises(InvalidMessage):
        read_job(world.picture(world.settings()))
    full = world.settings(stylegen_label="full")
    assert read_job(world.picture(full))["prompt_tags"] == world.order["prompt_tags"]
    assert check_machine(full)["labels"] == "full, not signed"


def _stylegen_copyright(world: World) -> None:
    found = read_provenance(world.picture(world.settings(stylegen_copyright="© {artist} & Co.")))
    assert found["rights"] == found["copyright"] == "© 김하늘 & Co."
    found = read_provenance(world.picture(world.settings()))
    assert found["rights"] == "Style licensed from 김하늘"


def _chain(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    chain, key = write_chain(folder)
    return {"stylegen_c2pa_certificate": chain, "stylegen_c2pa_key": key}


def _stylegen_c2pa_certificate(world: World) -> None:
    own = _chain(world.folder / "chain")
    data = world.picture(world.settings(**own))
    leaf = x509.load_pem_x509_certificate(own["stylegen_c2pa_certificate"].read_bytes())
    with c2pa.Reader("image/jpeg", io.BytesIO(data)) as reader:
        report, state = json.loads(reader.json()), reader.get_validation_state()
    info = report["manifests"][report["active_manifest"]]["signature_info"]
    assert (state, int(info["cert_serial_number"])) == ("Valid", leaf.serial_number)
    assert check_machine(world.settings(**own))["labels"].startswith("label, signed; ")
    metrics = Metrics()
    assert make_parts(world.settings(**own), metrics).metrics is metrics
    shown = metrics.registry.get_sample_value("stylegen_c2pa_certificate_expiry_timestamp_seconds")
    assert shown == leaf.not_valid_after_utc.timestamp()


def _stylegen_c2pa_key(world: World) -> None:
    own, other = _chain(world.folder / "own"), _chain(world.folder / "other")
    mixed = own | {"stylegen_c2pa_key": other["stylegen_c2pa_key"]}
    with pytest.raises(Unfit, match="not the certificate's"):  # nothing unsigned is delivered
        make_parts(world.settings(**mixed))
    world.picture(world.settings(**own))


EFFECTS: dict[str, Callable[[World], None]] = {
    name[1:]: row for name, row in list(globals().items()) if name[1:] in Settings.model_fields
}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_does_what_it_says(world: World, name: str) -> None:
    """One row for each; a new setting without one fails here."""
    assert name in EFFECTS, f"write down how one sees that {name.upper()} has an effect"
    EFFECTS[name](world)


DEFAULTS: dict[str, Any] = {
    "rabbitmq_host": "localhost",
    "s3_bucket": "stylelicense-images",
    "s3_acl": "public-read",
    "log_level": "INFO",
    "stylegen_queue": "image_generation",
    "stylegen_retry_delays": (5, 30, 300),
    "stylegen_max_redeliveries": 20,
    "stylegen_job_timeout": 600.0,
    "stylegen_drain_timeout": 660.0,
    "stylegen_health_host": "127.0.0.1",
    "stylegen_batch": 4,
    "stylegen_cache_folder": Path("~/.cache/stylegen"),
    "stylegen_cache_bytes": 20 * 2**30,
    "stylegen_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stylegen_device": "auto",
    "stylegen_offload": "none",
    "stylegen_compile": False,
    "stylegen_merge_loras": False,
    "stylegen_attention_slicing": False,
    "stylegen_vae_tiling": False,
    "stylegen_torch_threads": 0,
    "stylegen_label": "label",
    "stylegen_copyright": "Style licensed from {artist}",
}
"""Those that are not None; a deployment may lean on any of them."""
LIMITS = {
    "stylegen_prefetch": (1, 256),
    "stylegen_max_redeliveries": (1, 1000),
    "stylegen_health_port": (0, 65535),
    "stylegen_batch": (1, 64),
    "stylegen_cache_bytes": (0, 2**60),
    "stylegen_torch_threads": (0, 1000),
}
"""The least and the most that is taken; the last two have no most."""


def test_defaults() -> None:
    """What holds where nothing is set."""
    required = {name for name, field in Settings.model_fields.items() if field.is_required()}
    assert required == {"internal_api_token", "webhook_allowed_origins"}
    found = {name: field.default for name, field in Settings.model_fields.items()}
    assert {k: v for k, v in found.items() if k not in required and v is not None} == DEFAULTS


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    """The ends of a range are taken, and what lies beyond them is refused by its name."""
    needed = {"internal_api_token": "t", "webhook_allowed_origins": "https://a.example"}
    least, most = LIMITS[name]
    for value in (least, most):
        assert getattr(load_settings(**needed, **{name: value}), name) == value
    beyond = [least - 1] + ([most + 1] if most < 2**60 and name != "stylegen_torch_threads" else [])
    for value in beyond:
        with pytest.raises(SettingsError, match=name.upper()):
            load_settings(**needed, **{name: value})


def test_one_delay_is_enough() -> None:
    """And at least one is needed: a job that is never tried again would be no retry."""
    needed = {"internal_api_token": "t", "webhook_allowed_origins": "https://a.example"}
    assert load_settings(**needed, stylegen_retry_delays="7").stylegen_retry_delays == (7,)
    with pytest.raises(SettingsError, match="STYLEGEN_RETRY_DELAYS"):
        load_settings(**needed, stylegen_retry_delays=())


def test_tables() -> None:
    """README's table and the help's text name each variable as an operator writes it."""
    rows, told = settings_table().splitlines(), settings_help().splitlines()
    names = [name.upper() for name in Settings.model_fields]
    assert [row.split("`")[1] for row in rows[2:]] == names
    assert [line.split()[0] for line in told[1::2]] == names
    assert "| `INTERNAL_API_TOKEN` | required | " in "\n".join(rows)
    assert "| `STYLEGEN_RETRY_DELAYS` | `5,30,300` | " in "\n".join(rows)
    assert "  STYLEGEN_BATCH  (default 4)" in told and "  STYLEGEN_FONT" in told
    meaning = Settings.model_fields["stylegen_font"].description
    assert f"| `STYLEGEN_FONT` |  | {meaning} |" in rows
