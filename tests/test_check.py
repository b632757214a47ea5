"""`--check` asks what a job will need; a no says what is wrong, and which variable to change."""

import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import server_context, tls_receiver, write_chain
from rabbit import Broker
from s3_server import OwnerEnforcedGate, S3Server

from stylegen.errors import Unfit
from stylegen.pipeline.model_parts import PARTS, ModelFolder
from stylegen.queue import connect, publish_job
from stylegen.settings import Settings
from stylegen.webhook import WebhookReceiver
from stylegen.webhook.reach import ask_receiver
from stylegen.worker import check_machine, cli, main
from stylegen.worker.check import _QUESTIONS, is_no


@pytest.fixture(name="ask")
def _ask(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`check_machine` with a folder, a model without a safety checker, and these changes."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "x"}', "ascii")

    def check(lora_url: str | None = None, **changes: Any) -> dict[str, str]:
        usual = {
            "internal_api_token": "t",
            "webhook_allowed_origins": "https://api.invalid",
            "rabbitmq_url": "amqp://guest:guest@127.0.0.1:1/",
            "stylegen_storage_folder": tmp_path / "bucket",
            "stylegen_cache_folder": tmp_path / "cache",
            "stylegen_cache_bytes": 1000,
            "stylegen_model": str(tmp_path / "model"),
            "stylegen_device": "cpu",
        }
        return check_machine(Settings(**usual | changes), lora_url)

    return check


def test_each_no_names_a_variable(
    ask: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words first, and never an exception's bare name."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("s3cr3t")

    for name in ("choose_font", "covered_scripts", "make_store", "make_credentials", "connect"):
        monkeypatch.setattr(f"stylegen.worker.check.{name}", fail)
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.load_config", fail)
    answers = ask(stylegen_cache_folder="/dev/null/x")
    refused = {name: answer for name, answer in answers.items() if answer.startswith("no: ")}
    assert set(answers) - set(refused) == {"device", "memory"}
    variables = {name.upper() for name in Settings.model_fields.keys()}
    for answer in refused.values():
        words, _, named = answer.removeprefix("no: ").partition("; see ")
        assert " " in words and "s3cr3t" not in words
        assert named.split(", ")[0] in variables


def test_what_a_machine_lacks(
    ask: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No CUDA where it is asked for, a disk smaller than the cache, a model that hides nothing."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answers = ask(stylegen_device="cuda", stylegen_cache_bytes=2**62)
    assert "no CUDA device" in answers["device"] and "STYLEGEN_DEVICE" in answers["device"]
    total = shutil.disk_usage(tmp_path).total
    assert f"the disk has {total / 2**30:.1f}; see STYLEGEN_CACHE" in answers["cache"]
    assert answers["safety"] == "none" and answers["storage"] == "writable"
    checker = '{"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}'
    (tmp_path / "model/model_index.json").write_text(checker, "ascii")
    assert ask()["safety"] == "StableDiffusionSafetyChecker"
    assert ask()["cache"] == "writable"


def test_rights_of_the_broker(
    ask: Callable[..., dict[str, str]], rabbit: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told apart; what is asked leaves no message."""
    only(monkeypatch, "broker")
    for configure, write, said in (
        ("^jobs.*", "^jobs.*", "no: the account may not publish to the default exchange"),
        ("^$", ".*", "no: the account may not declare the exchange jobs.control"),
        (".*", ".*", "reachable"),
    ):
        url = rabbit.add_user(configure, write)
        answer = ask(rabbitmq_url=url, stylegen_queue="jobs")["broker"]
        assert answer.startswith(said)
    publish_job(b"{}", url=rabbit.url, queue_name="jobs")
    for configure, write, read, said in (
        ("^jobs[.]control$", ".*", ".*", "declare queues named jobs.… (configure)"),
        (".*", ".*", "^$", "bind a queue to the exchange jobs.control"),
        (".*", ".*", "^jobs[.]control$", "consume from queues named jobs.… (read)"),
        (".*", ".*", "^jobs[.].*", "consume from the queue jobs (read)"),
    ):
        url = rabbit.add_user(configure, write, read)
        answer = ask(rabbitmq_url=url, stylegen_queue="jobs")["broker"]
        assert answer.startswith(f"no: the account may not {said}")
    answer = ask(rabbitmq_url=rabbit.add_user(), stylegen_queue="jobs")["broker"]
    assert answer == "reachable"
    connection = connect(rabbit.url)
    method, _, _ = connection.channel().basic_get("jobs", auto_ack=True)
    connection.close()
    assert not method.redelivered  # nobody had it meanwhile


def test_a_broker_that_refuses(
    ask: Callable[..., dict[str, str]], rabbit: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password, a wrong virtual host and no broker are three things."""
    only(monkeypatch, "broker")
    wrong = rabbit.url.replace("guest:guest", "guest:wr0ng")
    assert "refuses the account" in ask(rabbitmq_url=wrong)["broker"]
    elsewhere = rabbit.url.rpartition("/")[0] + "/none"
    assert "refuses the virtual host" in ask(rabbitmq_url=elsewhere)["broker"]
    assert "can't be reached" in ask()["broker"]
    assert "does not resolve" in ask(rabbitmq_url="amqp://nowhere.invalid")["broker"]


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Ask only these questions: the others take their time."""
    chosen = {name: _QUESTIONS[name] for name in names}
    monkeypatch.setattr("stylegen.worker.check._QUESTIONS", chosen)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (62.0, "label, signed; the certificate ends on 2[0-9-]+, in 60 days$"),
        (31.5, "label, signed; .*, in 30 days$"),
        (30.5, "label, signed; .*, in 29 days: renew the certificate$"),
        (0.5, "no: the C2PA certificate has ended, on .*; see STYLEGEN_C2PA_CERTIFICATE"),
    ],
)
def test_the_certificate_of_pictures(
    ask: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    days: float,
    said: str,
) -> None:
    """Its last month is said, its end is a no."""
    only(monkeypatch, "labels")
    chain, key = write_chain(tmp_path, days=days)
    chain.write_bytes(chain.read_bytes().partition(b"\n-----BEGIN")[0])  # the root has thirty
    answer = ask(stylegen_c2pa_certificate=chain, stylegen_c2pa_key=key)["labels"]
    assert re.match(said, answer), answer


# Receivers


def test_receivers_are_told_apart(
    ask: Callable[..., dict[str, str]],
    backend: WebhookReceiver,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Name, port, time and certificate are four things; no event is sent to anybody."""
    only(monkeypatch, "webhooks")
    chains = {
        "good": ("127.0.0.1", 90.0),
        "expired": ("127.0.0.1", 0.5),
        "other": ("127.0.0.2", 90.0),
    }
    chains["soon"] = ("127.0.0.1", 10.0)
    for name, (address, days) in chains.items():
        (tmp_path / name).mkdir()
        chain, key = write_chain(tmp_path / name, address, days)
        with tls_receiver(server_context(chain, key)) as receiver:
            monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
            refused = ask(webhook_allowed_origins=receiver.url)["webhooks"]
            assert "certificate is not trusted" in refused and "REQUESTS_CA_BUNDLE" in refused
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(chain))
            answer = ask(webhook_allowed_origins=receiver.url)["webhooks"]
            assert answer.startswith("no: ") == (name in ("expired", "other"))
            assert {
                "good": "certificate until 2",
                "expired": "certificate has expired; see WEBHOOK_ALLOWED_ORIGINS",
                "other": "certificate is for another address",
                "soon": "in 8 days: renew it",
            }[name] in answer
            assert not receiver.received
    plain = backend.url.replace("http:", "https:")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    origins = {
        plain: "does not speak TLS",
        f"http://127.0.0.1:{port}": "refuses the connection",
        "https://nowhere.invalid": "its name does not resolve",
        backend.url: "connected",
    }
    lines = ask(webhook_allowed_origins=",".join(origins))["webhooks"].splitlines()
    assert [line.startswith("no: ") for line in lines] == [True, True, True, False]
    for origin, said in origins.items():
        (line,) = [each for each in lines if f"{origin}: " in each]
        assert said in line
    assert not backend.received
    (tmp_path / "none.pem").write_text("no certificate", "ascii")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert "can't be read" in ask(webhook_allowed_origins=plain)["webhooks"]


def test_a_silent_receiver_is_left() -> None:
    """It takes the connection, and says nothing: no longer than it is given."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        origin = f"https://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unfit, match="silent"):
            ask_receiver(origin, 0.2)


# The bucket

AskBucket = Callable[..., dict[str, str]]


@pytest.fixture(name="gate")
def _gate(s3: S3Server) -> Iterator[OwnerEnforcedGate]:
    """Before a bucket `asked`, which is empty, and one with an artist's file."""
    client = s3.client()
    for bucket in ("asked", "artists"):
        client.create_bucket(Bucket=bucket)
    for left in client.list_objects_v2(Bucket="asked").get("Contents", []):
        client.delete_object(Bucket="asked", Key=left["Key"])
    client.put_object(Bucket="artists", Key="x.safetensors", Body=b"style")
    with OwnerEnforcedGate(s3, None) as gate:
        yield gate


@pytest.fixture(name="ask_bucket")
def _ask_bucket(
    ask: AskBucket, gate: OwnerEnforcedGate, monkeypatch: pytest.MonkeyPatch
) -> AskBucket:
    """`ask` for the bucket behind the gate alone."""
    only(monkeypatch, "storage", "results", "clock", "loras")

    def check(lora_url: str | None = None, **changes: Any) -> dict[str, str]:
        usual = {
            "stylegen_storage_folder": None,
            "aws_endpoint_url_s3": gate.endpoint_url,
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "aws_region": "us-east-1",
            "s3_bucket": "asked",
        }
        return ask(lora_url, **usual | changes)

    return check


def left_in(s3: S3Server) -> list[str]:
    """What lies in the bucket that was asked."""
    found = s3.client().list_objects_v2(Bucket="asked").get("Contents", [])
    return [each["Key"] for each in found]


GENERATIONS = "/asked/generations/"


@pytest.mark.parametrize(
    ("right", "denied", "lines"),
    [
        ("none", lambda *_: False, ["writable, conditional writes"]),
        (
            "PutObject",
            lambda method, path, _: method == "PUT" and path.startswith(GENERATIONS),
            ["no: the account lacks s3:PutObject on generations/* (AccessDenied); see AWS_ACCESS"],
        ),
        (
            "PutObject of manifests",
            lambda method, path, _: method == "PUT" and path.startswith("/asked/manifests/"),
            ["no: the account lacks s3:PutObject on manifests/* (AccessDenied); see AWS_ACCESS"],
        ),
        (
            "PutObjectAcl",
            lambda method, _, with_acl: with_acl,
            ["writable", "without s3:PutObjectAcl on generations/* (AccessDenied): results are"],
        ),
        (
            "GetObject",
            lambda method, path, _: method == "GET" and path.startswith(GENERATIONS),
            ["no: the account lacks s3:GetObject on generations/* (AccessDenied); see AWS_ACCESS"],
        ),
        (
            "ListBucket",
            lambda method, path, _: method == "HEAD" and path == "/asked",
            ["no: the account lacks s3:ListBucket (403); see AWS_ACCESS_KEY_ID"],
        ),
        (
            "DeleteObject",
            lambda method, *_: method == "DELETE",
            [
                "writable",
                "without s3:DeleteObject on generations/* (AccessDenied): no job deletes",
                "without s3:DeleteObject on manifests/*",
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rights_of_the_bucket(
    ask_bucket: AskBucket,
    gate: OwnerEnforcedGate,
    s3: S3Server,
    right: str,
    denied: Any,
    lines: Any,
) -> None:
    """Each is told apart, and whatever is found the probes are deleted, where that may be."""
    gate.denied = denied
    answer = ask_bucket()["storage"]
    for line, said in zip(answer.splitlines(), lines, strict=True):
        assert line.startswith(said)
    probes = ["generations/probe.json", "manifests/probe.json"] if right == "DeleteObject" else []
    assert left_in(s3) == probes
    assert is_no(answer) == lines[0].startswith("no:")


def test_whoever_may_not_list(ask_bucket: AskBucket, gate: OwnerEnforcedGate) -> None:
    """What is missing looks forbidden, whatever the bucket itself says."""
    gate.hides_missing = True
    assert "lacks s3:ListBucket" in ask_bucket()["storage"]


def test_a_probe_is_deleted_after_a_failure(
    ask_bucket: AskBucket, gate: OwnerEnforcedGate, s3: S3Server
) -> None:
    """Another writes over it: what is read is something else, and both are gone."""

    def spoil(method: str) -> None:
        if method == "GET":
            for key in left_in(s3):
                s3.client().put_object(Bucket="asked", Key=key, Body=b"another's")

    gate.before = spoil
    assert "what was written is not what is read" in ask_bucket()["storage"]
    assert not left_in(s3)


def test_what_spoils_every_request(ask_bucket: AskBucket, gate: OwnerEnforcedGate) -> None:
    """A wrong name, no server, a server that ignores conditions: each in words."""
    answers = ask_bucket(s3_bucket="no-such-bucket")
    assert "there is no such bucket; see S3_BUCKET" in answers["storage"]
    answers = ask_bucket(aws_endpoint_url_s3="http://127.0.0.1:1")
    assert "can't be reached; see AWS_ENDPOINT_URL_S3" in answers["storage"]
    assert answers["clock"].startswith("not known") and not is_no(answers["clock"])
    assert answers["results"] == "http://127.0.0.1:1/asked/generations/gen_ID.jpg"
    gate.refusal = 400, "AccessControlListNotSupported"
    assert "without s3:PutObjectAcl" in ask_bucket()["storage"]
    assert ask_bucket(s3_acl="none")["storage"] == "writable, conditional writes"
    assert (
        ask_bucket(s3_public_url="https://cdn.x")["results"]
        == "https://cdn.x/generations/gen_ID.jpg"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "agrees with the bucket's"),
        (-180.0, "3 min ahead of the bucket's: set it"),
        (600.0, "no: 10 min behind the bucket's: set it, S3 refuses requests at 15"),
        (None, "not known"),
    ],
)
def test_the_clock(
    ask_bucket: AskBucket, gate: OwnerEnforcedGate, seconds: float | None, said: str
) -> None:
    """A little is said, so much that S3 will refuse is a no."""
    gate.clock_offset, gate.says_time = seconds or 0.0, seconds is not None
    assert ask_bucket()["clock"].startswith(said)
    assert [method for method, _ in gate.seen].count("HEAD") == 1, "one for two questions"


def test_an_artists_file(ask_bucket: AskBucket, ask: AskBucket, gate: OwnerEnforcedGate) -> None:
    """It can be read, is not there, or the account may not; in a folder as well."""
    assert ask_bucket()["loras"].startswith("not asked: a job names its bucket")
    url = "s3://artists/x.safetensors"
    assert ask_bucket(url)["loras"] == f"{url} can be read"
    assert "there is no such object" in ask_bucket("s3://artists/y.safetensors")["loras"]
    assert "there is no such bucket" in ask_bucket("s3://none/y.safetensors")["loras"]
    gate.denied = lambda method, path, _: method == "GET"
    assert f"the account lacks s3:GetObject on {url}" in ask_bucket(url)["loras"]
    gate.denied = lambda method, path, _: method == "HEAD"
    assert "the account lacks s3:ListBucket" in ask_bucket(url)["loras"]
    assert is_no(ask("x.safetensors")["loras"]) and is_no(ask(url)["loras"])


# The model


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", None, "its unet lacks a file"),
        ("vae/diffusion_pytorch_model.safetensors", 1000, "its vae has a file that is cut short"),
        ("text_encoder/model.safetensors", 0, "its text_encoder has an empty file"),
        ("text_encoder/config.json", 20, "its text_encoder has a damaged file"),
        ("tokenizer/vocab.json", 20, "its tokenizer has a damaged file"),
        ("tokenizer/merges.txt", None, "its tokenizer lacks a file: tokenizer/merges.txt"),
        ("scheduler/scheduler_config.json", None, "its scheduler lacks a file"),
        ("model_index.json", 2, "model_index.json names no unet"),
    ],
)
def test_parts_of_the_model(
    ask: AskBucket,
    pocket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: int | None,
    said: str,
) -> None:
    """Each is named that is missing, empty or cut short; a whole model is not."""
    only(monkeypatch, "parts")
    model = tmp_path / "pocket"
    shutil.copytree(pocket / "pocket", model)
    assert (
        ask(stylegen_model=str(model))["parts"] == "unet, vae, text_encoder, tokenizer, scheduler"
    )
    path = model / name
    begun = path.read_bytes()[: data or 0] if name != "model_index.json" else b"{}"
    path.unlink()
    if data is not None:
        path.write_bytes(begun)
    answer = ask(stylegen_model=str(model))["parts"]
    assert answer.startswith(f"no: {said}") and answer.endswith("HF_TOKEN")


def test_a_safety_checker_that_is_named_must_be_there(
    ask: AskBucket, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its weights, as any other part."""
    only(monkeypatch, "parts")
    model = tmp_path / "pocket"
    shutil.copytree(pocket / "pocket", model)
    path = model / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    path.write_text(json.dumps(index), encoding="utf-8")
    (model / "safety_checker").mkdir()
    (model / "safety_checker/config.json").write_text('{"hidden_size": 8}', encoding="utf-8")
    lacking = "no: its safety_checker lacks a file: safety_checker/model.safetensors"
    assert ask(stylegen_model=str(model))["parts"].startswith(lacking)


def test_half_precision_where_each_part_has_it(tmp_path: Path) -> None:
    """A GPU takes it then, and a CPU never."""
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "diffusion_pytorch_model.fp16.safetensors").touch()
    folder = ModelFolder(tmp_path, half=True)
    assert (folder.variant(["unet", "vae"]), folder.variant(["unet", "text_encoder"])) == (
        ".fp16",
        "",
    )
    assert not ModelFolder(tmp_path).variant(["unet", "vae"])


class _Hub(BaseHTTPRequestHandler):
    """Says which files a model has, as the hub does."""

    files: list[str] = []
    asked: list[str] = []

    def do_GET(self) -> None:
        """Any model's are the same."""
        self.asked.append(self.path)
        siblings = [{"rfilename": name} for name in self.files]
        body = json.dumps({"id": "owner/model", "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:  # pylint: disable=arguments-differ
        """Stay silent."""


def test_a_model_of_the_hub(
    ask: AskBucket, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched is looked at; what was not must be on the hub, which is asked."""
    only(monkeypatch, "parts")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0f" * 20
    snapshot = tmp_path / "models--owner--model/snapshots" / revision
    shutil.copytree(pocket / "pocket", snapshot)
    settings = {"stylegen_model": "owner/model", "stylegen_model_revision": revision}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ask(**settings)["parts"] == "unet, vae, text_encoder, tokenizer, scheduler"
    (snapshot / "unet/config.json").unlink()
    missing = "no: its unet lacks a file: unet/config.json, and the hub can't be asked"
    assert ask(**settings)["parts"].startswith(missing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{hub.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        _Hub.files = [f"{part}/config.json" for part in PARTS]
        assert ask(**settings)["parts"].endswith("scheduler; to be fetched from the hub")
        _Hub.files = ["unet/config.json"]
        assert "the hub has no vae, text_encoder" in ask(**settings)["parts"]
        assert (
            all(f"/owner/model/revision/{revision}" in path for path in _Hub.asked) and _Hub.asked
        )
        hub.shutdown()


def test_the_model_is_read_once(ask: AskBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all questions, also where it can't be."""
    only(monkeypatch, "model", "parts", "safety")
    read: list[str] = []

    def load(model: str, **_: Any) -> None:
        read.append(model)
        raise OSError

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.load_config", load)
    answers = ask()
    assert all(is_no(answers[name]) for name in ("model", "parts", "safety"))
    assert len(read) == 1


def test_memory_of_the_device(
    ask: AskBucket, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little for the model at this batch is a no; a CPU is not asked."""
    only(monkeypatch, "memory")
    model = {"stylegen_model": str(pocket / "pocket"), "stylegen_device": "cuda"}
    assert ask()["memory"].startswith("not asked")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**30, 3 * 2**30))
    assert ask(**model)["memory"].startswith("1.0 of 3.0 GiB free, 4 pictures at a time need 0.0")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**20, 3 * 2**30))
    answer = ask(**model)["memory"]
    assert answer.startswith("no: 0.0 of 3.0 GiB free") and "see STYLEGEN_BATCH" in answer


# The command


def test_answers_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backend: WebhookReceiver
) -> None:
    """Names stand in a column, answers beside it; long lines are folded for a terminal alone."""
    monkeypatch.setenv("INTERNAL_API_TOKEN", "t")
    monkeypatch.setenv("WEBHOOK_ALLOWED_ORIGINS", backend.url)
    monkeypatch.setenv("COLUMNS", "40")
    long = "no: the name of the host does not resolve; see A_VARIABLE"
    asked: list[str | None] = []

    def answer(_: Settings, lora_url: str | None) -> dict[str, str]:
        asked.append(lora_url)
        return {"device": "cpu", "webhooks": f"{long}\nfine"}

    monkeypatch.setattr(cli, "check_machine", answer)
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == f"device     cpu\nwebhooks   {long}\n           fine\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["--check", "s3://models/x.safetensors"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 40 for line in lines) and lines[2].startswith(" " * 13)
    assert asked == [None, "s3://models/x.safetensors"]


def test_the_operators_page_lists_the_questions() -> None:
    """In the order in which they are answered."""
    page = (Path(__file__).parents[1] / "docs/operating.md").read_text(encoding="utf-8")
    table = page.partition("| question | a no says |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(_QUESTIONS)
