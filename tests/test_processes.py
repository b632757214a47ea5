"""How processes begin and end: early, late, and when their supervisor dies."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
from waiting import wait_until

from stylegen.logs import set_up_logging, threads_logged
from stylegen.pipeline.loop import ActiveBatch, Loop
from stylegen.pipeline.task import Task
from stylegen.settings import load_settings
from stylegen.worker import cli, main

ROOT = Path(__file__).parents[1]


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    (caught,) = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("imported", ["site", "torch", "stylegen", "diffusers"])
def test_asked_to_end_while_it_begins(environment: dict[str, str], imported: str) -> None:
    """SIGTERM while modules are imported and the model is loaded: the worker had taken nothing."""
    with subprocess.Popen(
        [sys.executable, "-v", str(ROOT / "worker.py")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr
        wait_until(lambda: catches(worker.pid, signal.SIGTERM))
        seen = iter(worker.stderr)
        while f"import '{imported}'" not in next(seen):
            pass
        worker.terminate()
        drained = threading.Thread(target=list, args=(seen,))
        drained.start()
        assert worker.wait(120) == 0
        drained.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_workers_end_with_their_supervisor(
    environment: dict[str, str], number: signal.Signals
) -> None:
    """However it ends, no worker is left that nobody keeps."""
    command = [sys.executable, "-m", "stylegen.fleet.supervisor", "--workers", "2"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, cwd="/"
    ) as supervisor:
        assert supervisor.stderr
        lines = [supervisor.stderr.readline() for _ in range(2)]
        workers = [psutil.Process(int(line.rsplit(" ", 1)[1])) for line in lines]
        supervisor.send_signal(number)
        gone, alive = psutil.wait_procs(workers, timeout=60)
        assert (len(gone), alive) == (2, [])


SECRETS = {
    "INTERNAL_API_TOKEN": "t0ken-of-the-backend",
    "HF_TOKEN": "hf_token-of-the-hub",
    "AWS_SECRET_ACCESS_KEY": "secret-key-of-the-bucket",
    "RABBITMQ_URL": "amqp://worker:p%40ss%2Fw0rd@broker:5672/%2F",
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "  ", "\t\n\n"])
def test_every_setting_is_stripped(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A value from a file ends in a newline: Kubernetes' secrets do."""
    given = {
        **SECRETS,
        "AWS_ACCESS_KEY_ID": "key-of-the-bucket",
        "WEBHOOK_ALLOWED_ORIGINS": "https://api.example.com",
        "S3_BUCKET": "pictures",
        "S3_PUBLIC_URL": "https://cdn.example.com",
        "AWS_ENDPOINT_URL_S3": "http://minio:9000",
        "STYLEGEN_QUEUE": "jobs",
        "STYLEGEN_STORAGE_FOLDER": "/data",
        "STYLEGEN_MODEL": "a/model",
        "LOG_LEVEL": "INFO",
        "STYLEGEN_BATCH": "4",
        "STYLEGEN_COPYRIGHT": "of {artist}",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    plain = load_settings()
    for name, value in given.items():
        monkeypatch.setenv(name, end + value + end)
    assert load_settings() == plain
    monkeypatch.setenv("S3_PUBLIC_URL", end)
    assert load_settings().s3_public_url is None


def test_the_password_by_itself_is_secret() -> None:
    """Libraries quote it as it is meant, not as the URL has to write it."""
    fields: dict[str, Any] = {
        "internal_api_token": "t0ken-of-the-backend",
        "webhook_allowed_origins": ("https://api.example.com",),
        "rabbitmq_url": SECRETS["RABBITMQ_URL"],
    }
    secrets = load_settings(**fields).secrets
    assert {"p%40ss%2Fw0rd", "p@ss/w0rd", SECRETS["RABBITMQ_URL"]} < set(secrets)


@pytest.fixture(name="command")
def _command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`main` with these secrets."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-bucket")
    monkeypatch.setenv("WEBHOOK_ALLOWED_ORIGINS", "http://127.0.0.1:1")
    monkeypatch.setenv("STYLEGEN_STORAGE_FOLDER", str(tmp_path))
    return main


def raising(error: BaseException) -> Callable[..., None]:
    """A part that can't be made."""

    def make(*_: Any, **__: Any) -> None:
        raise error

    return make


QUOTED = " and ".join([*SECRETS.values(), "p@ss/w0rd"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(f"no such\nmodel: {QUOTED}"),
        ValueError(f"Invalid header value {QUOTED}"),
        SyntaxError(f"'{QUOTED}' was never closed"),
        RuntimeError(QUOTED),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("arguments", [(), ("--job", "job.json")], ids=["consume", "job"])
def test_what_ends_the_start_is_one_line(
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
    arguments: tuple[str, ...],
) -> None:
    """Whatever raises it, whatever it quotes; with the kind of error and no secret."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", raising(error))
    assert command(list(arguments)) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said and not [part for part in QUOTED.split(" and ") if part in said]
    if not (arguments and isinstance(error, OSError)):  # a job's file may be missing, too
        lines = [json.loads(line) for line in said.splitlines()]
        (last,) = [line for line in lines if line["levelname"] != "INFO"]  # it says what starts
        assert type(error).__name__ in last["message"]


def test_ctrl_c_is_130(command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a check waits, for instance."""
    monkeypatch.setattr(cli, "check_machine", raising(KeyboardInterrupt()))
    assert command(["--check"]) == 130


def test_an_engine_ends_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread inside torch would abort the interpreter's end, and Ctrl-C would not be 130."""
    at_exit: list[Callable[[], None]] = []
    registry = MagicMock(register=at_exit.append, unregister=at_exit.remove)
    monkeypatch.setattr("stylegen.pipeline.loop.atexit", registry)
    begun, goes_on, encode_decode = threading.Event(), threading.Event(), MagicMock()
    batch = MagicMock(step=lambda _: (begun.set(), goes_on.wait(30)))
    job: Any = MagicMock(resolution=(512, 512), total_steps=50)
    trajectory = MagicMock(calls=0, timesteps=range(50))
    words = MagicMock()
    tasks = [Task(job, None, prompt_embeds=words, trajectory=trajectory) for _ in range(2)]
    loop = Loop(ActiveBatch(batch, 1), encode_decode)
    assert not at_exit  # an engine that never drew has no thread
    loop.add(*tasks)
    assert begun.wait(30)
    assert len(at_exit) == 1
    ending = threading.Thread(target=at_exit[0])
    ending.start()
    wait_until(lambda: all(task.result.cancelled() for task in tasks))
    assert ending.is_alive()  # the step is still being taken
    goes_on.set()
    ending.join(30)
    assert loop._thread not in threading.enumerate()  # pylint: disable=protected-access
    loop.close()
    assert not at_exit


def test_a_thread_ends_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Its name and where it ended; nothing of what the exception quotes."""
    set_up_logging("INFO")
    with threads_logged():
        thread = threading.Thread(target=int, args=("a customer's prompt",), name="progress")
        thread.start()
        thread.join()
    (line,) = capfd.readouterr().err.splitlines()
    message = json.loads(line)
    assert "thread progress" in message["message"] and "ValueError" in message["exc_info"]
    assert "prompt" not in line
