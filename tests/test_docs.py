"""The documentation: its commands are run, its examples are checked, its links lead somewhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pika
import pytest
from conftest import TOKEN
from pages import TRANSLATIONS, Page, blocks
from rabbit import Broker, VirtualHost
from s3_server import S3Server

from stylegen import job as job_module
from stylegen.fleet.loadgen import LoadReceiver
from stylegen.fields import SCHEDULERS
from stylegen.job import GenerationJob, StylegenError, check_job
from stylegen.queue import dead_letters, publish_job
from stylegen.settings import Settings
from stylegen.storage import FolderStore
from stylegen.webhook import WebhookReceiver, send_failed_webhook, send_progress
from stylegen.worker import Parts, RunningJobs, describe, do_control

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOT_RUN = {
    "make demo": "installs; `test_demo` runs what it runs",
    "make test": "is what runs this",
}
"""Commands of the README that are not run, and why."""
ENDLESS = ("python worker.py", "stylegen-supervisor --workers 2")
"""Ends of commands that work until they are asked to end."""
sys.path.insert(0, str(ROOT / "tools"))
import job_schema  # noqa: E402  pylint: disable=wrong-import-position


def commands() -> list[str]:
    """Each distinct command of the pages; a block that uses the shell's jobs is one command."""
    found = []
    for page in [*PAGES, ROOT / "README.md"]:
        for block in blocks(page, "sh"):
            whole = [block] if "$!" in block else block.replace("\\\n", " ").splitlines()
            bare = [re.sub(r"\s+#.*", "", command).strip() for command in whole]
            found += [command for command in bare if command and command not in NOT_RUN]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def place(pocket: Path, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A checkout's look, a broker with the exchange, a bucket and a receiver; how to run there."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("worker.py", "bench"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("tools", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    demo = [sys.executable, "tools/demo.py"]
    shown = subprocess.run(
        demo, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    (folder / "demo.log").write_text(shown.stdout, encoding="utf-8")
    client = s3.client()
    for bucket in ("models", "stylelicense-images"):
        client.create_bucket(Bucket=bucket)
    client.upload_file(
        str(pocket / "models/style_10.safetensors"), "models", "style_10.safetensors"
    )
    with LoadReceiver(lambda webhook: 200) as probe:
        listen = f"127.0.0.1:{probe.server_port}"
    with VirtualHost() as rabbit, WebhookReceiver() as backend:
        (example,) = blocks(ROOT / "docs/messages.md", "json job")
        job = json.loads(example) | {"webhook_url": backend.url, "num_inference_steps": 2}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "INTERNAL_API_TOKEN": TOKEN,
            "WEBHOOK_ALLOWED_ORIGINS": f"{backend.url},http://{listen}",
            "RABBITMQ_URL": rabbit.url,
            "AWS_ENDPOINT_URL_S3": s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "STYLEGEN_MODEL": str(pocket / "pocket"),
            "STYLEGEN_DEVICE": "cpu",
        }
        yield folder, environment, rabbit, listen, {}


def wait_for_consumers(rabbit: Broker, count: int, queue: str) -> None:
    """Wait at most two minutes for that many consumers of a queue."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    channel, deadline = connection.channel(), time.monotonic() + 120
    declare = channel.queue_declare
    while declare(queue, durable=True).method.consumer_count != count:
        assert time.monotonic() < deadline
        connection.sleep(0.2)
    connection.close()


@pytest.mark.parametrize("command", commands(), ids=lambda word: re.sub(r"\W+", "-", word)[:70])
def test_command_runs(command: str, place: Any) -> None:
    """It exits with 0; those that work until they are asked to end are asked, once they work."""
    folder, environment, rabbit, listen, outputs = place
    words = command.replace("127.0.0.1:8099", listen).replace("FILE", "job.json")
    words = re.sub(r"\bID\b", "500", words)
    queue = ([*re.findall(r"STYLEGEN_QUEUE=(\S+)", command), "image_generation"])[0]
    if words not in outputs:  # two pages may say the same with other placeholders
        if "--redrive" in command:  # exits with 1 when there is nothing to move
            letter = b'{"generation_id": 500}'
            publish_job(letter, url=rabbit.url, queue_name=dead_letters(queue))
        if "check" in words:  # it asks for each receiver, and the load's is not there yet
            origin, _ = environment["WEBHOOK_ALLOWED_ORIGINS"].split(",")
            environment = environment | {"WEBHOOK_ALLOWED_ORIGINS": origin}
        outputs[words] = run_command(words, folder, environment, rabbit, queue)
    for shown in [
        block for page in PAGES for block in blocks(page, "text of " + re.escape(command))
    ]:
        assert outputs[words] == shown


def run_command(
    words: str, folder: Path, environment: dict[str, str], rabbit: Broker, queue: str
) -> str:
    """Run it in the folder, and ask it to end if it is endless; what it printed."""
    endless = words.endswith(ENDLESS)
    script = words.replace("python", "exec python", 1) if endless else f"set -eu\n{words}"
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            if endless:
                wait_for_consumers(rabbit, 2 if words.endswith("2") else 1, queue)
                process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=150)
        finally:
            process.kill()
    assert process.returncode == 0, output
    return output


def test_demo(place: Any) -> None:
    """``make demo``'s script shows each webhook, and its picture is there."""
    folder, *_ = place
    told = (folder / "demo.log").read_text(encoding="utf-8")
    assert told.count("/progress") == 5 and told.count("/complete") == 1
    assert list((folder / "out/demo").rglob("*.jpg"))


def test_readme_python_runs(place: Any) -> None:
    """After the demo, the README's example draws a picture."""
    folder, environment, *_ = place
    (code,) = blocks(ROOT / "README.md", "python")
    head, _, last = code.rstrip().rpartition("\n")
    script = f"{head}\nimage = {last}\nassert image.size == (512, 512)\nengine.close()\n"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_schema_is_the_models() -> None:
    """The stored schema is what the model says today, and takes the example."""
    stored = (ROOT / "docs/job.schema.json").read_text(encoding="utf-8")
    assert stored == job_schema.schema()
    (example,) = blocks(ROOT / "docs/messages.md", "json job")
    jsonschema.validate(json.loads(example), json.loads(stored))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(example) | {"seed": -1}, json.loads(stored))


def test_messages_are_the_workers(tmp_path: Path) -> None:
    """The page's tables name every field and scheduler; its webhooks have our shapes."""
    page = ROOT / "docs/messages.md"
    named = re.findall(r"^\| `([\w+]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) == {*GenerationJob.model_fields, *SCHEDULERS}
    (example,), (complete,) = blocks(page, "json job"), blocks(page, "json complete")
    assert json.loads(complete)["metadata"] == describe(check_job(json.loads(example)))
    (progress,), (failed,) = blocks(page, "json progress"), blocks(page, "json failed")
    end = json.loads(failed)
    assert end["error_code"] in codes()
    with WebhookReceiver() as backend:
        send_progress(backend.url, 500, 13, 50, progress_percent=25, estimated_seconds=4)
        send_failed_webhook(backend.url, 500, end["error_message"], error_code=end["error_code"])
        assert [each.body for each in backend.received] == [json.loads(progress), end]
    (cancel,), watch = blocks(page, "json cancel"), RunningJobs()
    parts = Parts(lambda *_: None, FolderStore(tmp_path), (), TOKEN, running_jobs=watch)
    with watch.job(500) as ticket:
        do_control(cancel.encode(), parts)
        assert ticket.canceled.is_set()


def codes() -> set[str]:
    """Every error code there is."""
    kinds = [kind for kind in vars(job_module).values() if isinstance(kind, type)]
    return {kind.error_code for kind in kinds if issubclass(kind, StylegenError)}


def test_troubleshooting_has_each_code() -> None:
    """A section for each code, and none for a code that no job ends with."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## ([A-Z_]+)$", text, re.MULTILINE)) == codes()


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "README.md", *TRANSLATIONS.values()],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_page_names_what_there_is(page: Path) -> None:
    """Links lead to files and headings, settings and make targets exist."""
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        linked = (page.parent / target).resolve() if target else page
        if not (ROOT / "stylegen/models/pocket/README.md") == linked:  # written by the training
            assert linked.exists(), target
        if anchor:
            assert anchor in Page.read(linked).anchors()
    settings = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"\bSTYLEGEN_\w+", text)) <= settings
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_readme_quotes_the_results() -> None:
    """The table of figures is the stored results', and the settings' table is complete."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    scale = json.loads((ROOT / "bench/results/scale.json").read_text(encoding="utf-8"))
    speed = {row["workers"]: row["full_queue"]["jobs_per_second"] for row in scale["fleets"]}
    assert f"{speed[4] / speed[1]:.2f}×" in text
    assert not [name for name in Settings.model_fields if f"| `{name.upper()}` |" not in text]


def test_sizing_quotes_the_results() -> None:
    """Each row of its tables is a stored result."""
    text = (ROOT / "docs/sizing.md").read_text(encoding="utf-8")
    scale, affinity = (
        json.loads((ROOT / f"bench/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("scale", "affinity")
    )
    for row in scale["fleets"]:
        speed, waits = row["full_queue"]["jobs_per_second"], row["random_arrivals"]
        first = scale["fleets"][0]["full_queue"]["jobs_per_second"]
        load = waits["jobs_per_second"] / speed
        cells = f"{load:.0%} | {waits['wait_p50']:.2f} s | {waits['wait_p99']:.2f} s"
        assert f"| {row['workers']} | {speed:.2f} | {speed / first:.2f}× | {cells} |" in text
    for row in affinity["rows"]:
        hits = f"{row['shared']['hits']:.0%} | {row['by_style']['hits']:.0%}"
        cells = f"{row['artists']} | {row['popularity']} | {hits}"
        assert f"| {cells} | {row['by_style']['busiest']:.2f} |" in text
    assert f"{scale['broker_ms_per_job']:.2f} ms a job" in text
