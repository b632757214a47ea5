"""What each kind of setting may hold: wrong ones are named before a model is loaded."""

import json
import logging
import os
import pwd
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import write_chain
from rabbit import Broker

from stylegen.queue import broker_url
from stylegen.settings import Settings, SettingsError, load_settings, unknown_variables
from stylegen.worker import ExitCode, cli, main

ROOT = Path(__file__).parents[1]
NEEDED = {
    "INTERNAL_API_TOKEN": "t0ken-of-the-backend",
    "WEBHOOK_ALLOWED_ORIGINS": "https://api.example.com",
}
URLS = ("S3_PUBLIC_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
NO_URLS = [
    "minio:9000",
    "cdn.example.com",
    "http//x",
    "http:/x",
    "http://",
    "https://:9000",
    "ftp://x",
    "s3://x",
    "http://user:pw@minio:9000",
    "http://minio:0",
    "http://minio:70000",
    "http://minio:abc",
    "http://minio:9000?x=1",
    "http://minio:9000/#x",
    "http://mi nio:9000",
    "http://minio:9000/a b",
    "http://::1:9000",
    "http://[::1",
    "http://127.1:9000",
    "http://인형.example",
    "http://a\nb",
]
NO_BROKERS = [
    "foo://x",
    "localhost",
    "localhost:5672",
    "http://localhost:5672",
    "amqp//x",
    "amqp://",
    "amqp://:5672",
    "amqp://guest@broker",
    "amqp://guest:pa/ss@broker:5672",
    "amqp://guest:pa#ss@broker:5672",
    "amqp://guest:p@ss@broker:5672",
    "amqp://guest:guest@broker:abc",
    "amqp://guest:guest@broker:70000",
    "amqp://guest:guest@broker:0",
    "amqp://guest:guest@::1:5672",
    "amqp://guest:guest@broker/a/b",
    "amqp://guest:guest@bro ker",
    "amqp://guest:guest@broker/?heartbeat=soon",
    "amqp://guest:guest@broker/?nonsense=1",
    "amqps://guest:guest@broker/?ssl_options={'ca_certs':'/none.pem'}",
    "amqps://guest:guest@broker/?ssl_options={",
    "amqp://guest:gu\nest@broker",
]
NO_HOSTS = ["host:5673", "amqp://host", "user@host", "host/x", "[::1]", "127.1", "a b", "a..b", ":"]
NO_BUCKETS = [
    *("s3://x", "UPPER_case!", "Pictures", "ab", "a" * 64, "a/b", "-ab", "ab-", "a..b"),
    *("192.168.0.1", "a b", "a_b", "그림들", "arn:aws:s3:::pictures"),
]
NO_HEADERS = ["two words", "tökén", "line\nbreak", "car\rriage", "tab\tbed", "토큰", "a\x7fb"]
NO_SECRETS = [
    *("whsec_", "whsec_A", "whsec_AAAAA", "whsec_päss", "pass word", "whsec_c2VjcmV0"),
    *("whsec_" + "A" * 88, "whsec_" + "A" * 31, "whsec_" + "A" * 32 + "\n" + "A" * 4),
]
FILES = ("STYLEGEN_FONT", "REQUESTS_CA_BUNDLE", "STYLEGEN_C2PA_CERTIFICATE", "STYLEGEN_C2PA_KEY")
WRONG = [
    *((name, value) for name in URLS for value in NO_URLS),
    *(("RABBITMQ_URL", value) for value in NO_BROKERS),
    *((name, value) for name in ("RABBITMQ_HOST", "STYLEGEN_HEALTH_HOST") for value in NO_HOSTS),
    *(("S3_BUCKET", value) for value in NO_BUCKETS),
    *(("INTERNAL_API_TOKEN", value) for value in ["", " ", "\n", "Bearer x", *NO_HEADERS]),
    *((n, v) for n in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN") for v in NO_HEADERS),
    *(("AWS_SECRET_ACCESS_KEY", value) for value in ["two\nlines", "a\x01b"]),
    *(("WEBHOOK_SECRET", value) for value in NO_SECRETS),
    *(("AWS_REGION", value) for value in ["us east", "us_east_1", "-eu", "eu-", "eu/x", "a\nb"]),
    *((name, "/none/x.pem") for name in FILES),
    *((name, str(ROOT)) for name in FILES if name != "REQUESTS_CA_BUNDLE"),
    *((name, __file__) for name in ("STYLEGEN_STORAGE_FOLDER", "STYLEGEN_CACHE_FOLDER")),
    *(
        ("STYLEGEN_MODEL", v)
        for v in ["/none/model", "~/none/model", "./x", "a/b/c", "https://x/y"]
    ),
    *(("STYLEGEN_MODEL", v) for v in [str(ROOT / "tests"), __file__, "a b", "-a/b"]),
    *(("STYLEGEN_MODEL_REVISION", v) for v in ["a b", "../main", "/main", "a..b", "-x", "v" * 201]),
    *(("STYLEGEN_QUEUE", value) for value in ["amq.jobs", "q" * 201, "그림" * 40, "two\nlines"]),
    *(("STYLEGEN_RETRY_DELAYS", value) for value in ["5s", "0", "-1", "1.5", "4294968", "5;30"]),
    *(("LOG_LEVEL", value) for value in ["verbose", "1", "WARN ING"]),
    *(
        (name, value)
        for name in ("STYLEGEN_JOB_TIMEOUT", "STYLEGEN_DRAIN_TIMEOUT")
        for value in ["inf", "nan", "1e12", "0", "10m"]
    ),
    ("STYLEGEN_COPYRIGHT", "two\nlines"),
    ("STYLEGEN_DRAIN_TIMEOUT", "604801"),
    ("WEBHOOK_ALLOWED_ORIGINS", "https://a.example:0"),
    ("WEBHOOK_ALLOWED_ORIGINS", "http//x"),
    ("WEBHOOK_ALLOWED_ORIGINS", "https://*.example.com"),
]
"""Variables, and values that no worker can work with."""
RIGHT = [
    *((name, "https://cdn.example.com") for name in URLS),
    *((name, "http://[2001:db8::1]:9000/a/path%20of/") for name in URLS),
    *((name, "HTTP://My_Minio.local.:9000") for name in URLS),
    ("RABBITMQ_URL", "amqp://broker"),
    ("RABBITMQ_URL", "AMQPS://worker:p%40s%2Fs:x@[::1]:5671/%2F?heartbeat=30&socket_timeout=5"),
    ("RABBITMQ_URL", "amqps://guest:@Broker.Example.com:65535/jobs"),
    *(
        (n, v)
        for n in ("RABBITMQ_HOST", "STYLEGEN_HEALTH_HOST")
        for v in ["::1", "10.0.0.7", "My_B"]
    ),
    ("STYLEGEN_HEALTH_HOST", "::"),
    ("STYLEGEN_HEALTH_HOST", "0.0.0.0"),
    ("S3_BUCKET", "abc"),
    ("S3_BUCKET", "my.dotted-bucket." + "0" * 46),
    ("INTERNAL_API_TOKEN", "eyJ0.e30=._~+/-"),
    *(("WEBHOOK_SECRET", value) for value in ["whsec_" + "A" * 32, "A" * 84 + "AA=="]),
    ("AWS_REGION", "auto"),
    ("AWS_REGION", "cn-northwest-1"),
    ("REQUESTS_CA_BUNDLE", str(ROOT / "tests")),
    ("STYLEGEN_FONT", __file__),
    ("STYLEGEN_MODEL", "owner/a.model-of_ours"),
    *(("STYLEGEN_MODEL_REVISION", value) for value in ["main", "refs/pr/7", "v1.0", "0f" * 20]),
    ("STYLEGEN_QUEUE", "그림" * 30),
    ("STYLEGEN_RETRY_DELAYS", "4294967"),
    ("STYLEGEN_DRAIN_TIMEOUT", "604800"),
    ("STYLEGEN_COPYRIGHT", "©\u00a0{artist}"),
    ("STYLEGEN_STORAGE_FOLDER", "/none/yet"),
    *(("LOG_LEVEL", value) for value in ["info", "Debug", " warning\n"]),
]


@pytest.fixture(name="setting")
def _setting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets variables beside those that are needed; the others are not set."""
    for name in Settings.model_fields.keys():
        monkeypatch.delenv(name.upper(), raising=False)

    def set_all(**variables: str) -> None:
        for name, value in (NEEDED | variables).items():
            monkeypatch.setenv(name, value)

    return set_all


def complaints() -> dict[str, str]:
    """What is wrong, by variable; each is named once."""
    try:
        load_settings()
    except SettingsError as error:
        lines = [line.split(": ", 1) for line in str(error).splitlines()]
        assert len({name for name, _ in lines}) == len(lines)
        return dict(lines)
    return {}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_is_described(name: str) -> None:
    """What ``--help`` and the table say of it."""
    assert Settings.model_fields[name].description


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_ones_are_named(setting: Callable[..., None], name: str, value: str) -> None:
    """By the variable alone, in words that hold nothing of the value."""
    pair = {"STYLEGEN_C2PA_CERTIFICATE": __file__, "STYLEGEN_C2PA_KEY": __file__}
    setting(**(pair if name in pair else {}) | {name: value})
    found = complaints()
    assert list(found) == [name]
    assert not found[name].startswith("Value error") and found[name] != "None"
    assert value == "0" or value not in found[name].split()
    assert "pw" not in found[name] and "pa" not in re.findall(r"\w+", found[name])


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_right_ones_are_taken(setting: Callable[..., None], name: str, value: str) -> None:
    """Whatever the field's own readers take."""
    setting(**{name: value})
    assert not complaints()


def test_all_together_before_anything_else(
    setting: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One wrong start names each: of one kind, of another, and those that don't go together."""
    wrong = {
        "RABBITMQ_URL": "foo://x",
        "RABBITMQ_HOST": "host:5673",
        "AWS_ENDPOINT_URL_S3": "minio:9000",
        "S3_PUBLIC_URL": "cdn.example.com",
        "S3_BUCKET": "s3://x",
        "INTERNAL_API_TOKEN": "tökén",
        "WEBHOOK_SECRET": "whsec_AAAAA",
        "STYLEGEN_C2PA_CERTIFICATE": "/none/chain.pem",
        "STYLEGEN_C2PA_KEY": "/none/key.pem",
        "STYLEGEN_MODEL": "/none/model",
        "STYLEGEN_COMPILE": "1",
        "STYLEGEN_MERGE_LORAS": "1",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t\n2",
        "AWS_SESSION_TOKEN": "0f-no-keys",
        "LOG_LEVEL": "verbose",
    }
    setting(**wrong, STYLEGEN_OFFLOAD="model", STYLEGEN_MODLE="x")
    monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", None)
    for arguments in ([], ["--check"], ["--redrive"], ["--job", "job.json"]):
        assert main(arguments) == ExitCode.WRONG_SETTINGS
        shown = capsys.readouterr().err
        lines = [json.loads(line)["message"] for line in shown.splitlines()]
        assert set(wrong) <= {line.split(":")[0] for line in lines}
        assert "STYLEGEN_MODLE" in shown and "STYLEGEN_MODEL?" in shown
        assert "tökén" not in shown and "s3cr3t" not in shown


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"STYLEGEN_C2PA_CERTIFICATE": __file__}, "STYLEGEN_C2PA_KEY"),
        ({"STYLEGEN_C2PA_KEY": __file__}, "STYLEGEN_C2PA_KEY"),
        ({"STYLEGEN_COMPILE": "1", "STYLEGEN_OFFLOAD": "model"}, "STYLEGEN_COMPILE"),
        ({"AWS_ACCESS_KEY_ID": "AKIDOFOURS"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": "s3cr3t"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SESSION_TOKEN": "t0ken"}, "AWS_SESSION_TOKEN"),
    ],
)
def test_what_goes_together(
    setting: Callable[..., None], given: dict[str, str], named: str
) -> None:
    """Half of a pair, or two that exclude each other."""
    setting(**given)
    assert list(complaints()) == [named]


def test_the_home_of_each_path(
    setting: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``~`` is expanded in each path; without a home it is the variable that is named."""
    fields = {name: field.annotation for name, field in Settings.model_fields.items()}
    paths = [name.upper() for name, kind in fields.items() if "Path" in str(kind)]
    assert len(paths) == 6
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text("{}", "ascii")
    (tmp_path / "file").write_text("", "ascii")
    given = {name: "~/new" if name.endswith("FOLDER") else "~/file" for name in paths}
    setting(**given, STYLEGEN_MODEL="~/model")
    settings = load_settings()
    for name, value in given.items():
        assert getattr(settings, name.lower()) == tmp_path / value[2:]
    assert settings.stylegen_model == str(tmp_path / "model")
    monkeypatch.delenv("STYLEGEN_CACHE_FOLDER")
    assert load_settings().stylegen_cache_folder == tmp_path / ".cache/stylegen"


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_no_home(
    setting: Callable[..., None], monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    """Named where one is needed, and no matter where none is; an account may have none at all."""

    def nobody(_: object) -> None:
        raise KeyError

    setting()
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    found = complaints()
    assert list(found) == ["STYLEGEN_CACHE_FOLDER"] and "HOME" in found["STYLEGEN_CACHE_FOLDER"]
    setting(STYLEGEN_CACHE_FOLDER="/cache")
    assert not complaints()
    setting(STYLEGEN_CACHE_FOLDER="/cache", STYLEGEN_FONT="~/font.ttf", STYLEGEN_MODEL="~/m")
    assert set(complaints()) == {"STYLEGEN_FONT", "STYLEGEN_MODEL"}


def test_an_ipv6_broker(setting: Callable[..., None]) -> None:
    """A bare address gets the brackets that a URL needs."""
    setting(RABBITMQ_HOST="::1")
    assert broker_url(load_settings()) == "amqp://guest:guest@[::1]:5672/%2F"


@pytest.fixture(name="logged")
def _logged(setting: Callable[..., None], tmp_path: Path) -> Iterator[Callable[..., None]]:
    """`setting` for `main`, which sets up logging; leaves the test's logging as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield lambda **variables: setting(STYLEGEN_STORAGE_FOLDER=str(tmp_path), **variables)
    root.handlers[:], root.level = before, level


def test_a_name_that_nobody_knows(
    logged: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """A slip is warned of with the nearest name; the worker starts."""
    logged(STYLEGEN_BATCHES="4", stylegen_que="x", STYLEGENERIC="1", STYLEGEN_DEVICE="cpu")
    assert main(["--cancel", "no id"]) == ExitCode.WRONG_SETTINGS
    shown = capfd.readouterr().err
    assert "STYLEGEN_BATCHES" in shown and "STYLEGEN_BATCH?" in shown and "WARNING" in shown
    assert "stylegen_que:" in shown and "STYLEGEN_QUEUE?" in shown
    assert "STYLEGENERIC" not in shown and "STYLEGEN_DEVICE" not in shown
    assert not unknown_variables([name.upper() for name in Settings.model_fields.keys()])
    assert unknown_variables(["STYLEGEN_", "STYLEGEN_Q"]) != []


# Exit codes


def test_a_certificate_that_has_ended(
    logged: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path
) -> None:
    """It can't sign: a wrong setting, found out before a model is loaded for minutes."""
    chain, key = write_chain(tmp_path, days=0.5)
    logged(STYLEGEN_C2PA_CERTIFICATE=str(chain), STYLEGEN_C2PA_KEY=str(key))
    monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", None)
    (tmp_path / "job.json").write_text("{}", "ascii")
    assert main(["--job", str(tmp_path / "job.json")]) == ExitCode.WRONG_SETTINGS
    shown = json.loads(capfd.readouterr().err)
    assert shown["levelname"] == "CRITICAL"
    said = "STYLEGEN_C2PA_CERTIFICATE, STYLEGEN_C2PA_KEY: the C2PA certificate has ended, on 2"
    assert shown["message"].startswith(said)


def interrupt(*_: Any, **__: Any) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt


ENDS: dict[str, tuple[list[str], int]] = {
    "the answers": (["--check"], 0),
    "a no": (["--check"], 1),
    "the answers, and a LoRA": (["--check", "s3://models/x.safetensors"], 0),
    "a file that is not there": (["--job", "none.json"], 1),
    "an empty name of a file": (["--job", ""], 1),
    "nothing to redrive": (["--redrive"], 1),
    "no such dead letter": (["--redrive", "500"], 1),
    "an empty id of a dead letter": (["--redrive", ""], 1),
    "no id": (["--cancel", "a b"], 2),
    "an empty id": (["--cancel", ""], 2),
    "no such option": (["--nonsense"], 2),
    "two at once": (["--check", "--redrive"], 2),
    "an option without its value": (["--cancel"], 2),
    "a word too many": (["worker"], 2),
    "Ctrl-C while it asks": (["--check"], 130),
    "Ctrl-C while it draws": (["--job", "job.json"], 130),
}
"""Command lines and their exit codes; 3 and 4 end a process at once, see `ExitCode`."""


@pytest.mark.parametrize("end", ENDS)
def test_exit_codes(
    logged: Callable[..., None], rabbit: Broker, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Each command line ends with the code that the operator's page says."""
    logged(RABBITMQ_URL=rabbit.url, STYLEGEN_QUEUE="nothing-dead")
    monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", lambda *_, **__: None)
    monkeypatch.setattr("stylegen.pipeline.resident.Engine", interrupt)
    monkeypatch.setattr(cli, "consume", None)
    answers = {"device": "no: none" if end == "a no" else "cpu"}
    ask = interrupt if "Ctrl-C" in end else lambda *_: answers
    monkeypatch.setattr(cli, "check_machine", ask)
    monkeypatch.chdir(os.environ["STYLEGEN_STORAGE_FOLDER"])
    Path("job.json").write_text("{}", "ascii")
    arguments, code = ENDS[end]
    try:
        ended = main(arguments)
    except SystemExit as error:  # argparse's
        ended = int(error.code or 0)
    assert ended == code


def test_the_table_of_exit_codes() -> None:
    """The operator's page names each code there is, as the code does, and no other."""
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| exit code \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in table.splitlines()]
    assert rows == [[str(int(code)), f"`{code.name}`"] for code in ExitCode]
    assert {code for _, code in ENDS.values()} | {3, 4} == set(ExitCode)
