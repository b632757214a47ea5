"""Container, compose file, manifests, dashboard and alerts: as far as they can be proved offline.

The Dockerfile is linted by hadolint and never built here. Manifests are validated by Kubernetes'
own schemas, or by `tests/schemas` for custom resources, and never applied. What compose.yaml
would start is started as plain processes.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pika
import promql_parser
import pytest
import requests
import yaml
from rabbit import RabbitNode

from stylegen.errors import error_codes
from stylegen.fleet.affinity import affinity_queues
from stylegen.fleet.loadgen import LoadReceiver
from stylegen.job import WebhookError
from stylegen.queue import dead_letters, publish_job
from stylegen.queue.retries import retry_queue
from stylegen.settings import RETRY_DELAYS, Settings
from stylegen.storage import MAX_LORA_BYTES
from stylegen.worker import Health, HealthServer, Metrics, RunningJobs

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(path for path in DEPLOY.rglob("*.yaml") if path.name != "kustomization.yaml")
KUBERNETES = "1.30"
METRICS = {
    "stylegen_jobs_total": {"outcome"},
    "stylegen_jobs_in_progress": set(),
    "stylegen_stage_seconds_bucket": {"stage"},
    "stylegen_queue_wait_seconds_bucket": set(),
    "stylegen_lora_cache_total": {"result"},
    "stylegen_webhook_deliveries_total": {"event", "result"},
    "stylegen_breaker_trips_total": set(),
    "stylegen_device_memory_bytes": set(),
    "rabbitmq_queue_messages_ready": {"queue"},
    "rabbitmq_queue_consumers": {"queue"},
}
SETTINGS = {name.upper() for name in Settings.model_fields}


def load(path: Path) -> Any:
    """A YAML file's one document."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def manifest(kind: str) -> dict[str, Any]:
    """The one manifest of a kind."""
    (found,) = [each for each in map(load, MANIFESTS) if each["kind"] == kind]
    return found


def configured() -> dict[str, str]:
    """The pods' settings, of which Kustomize makes a ConfigMap."""
    lines = (DEPLOY / "base/settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def size(text: str) -> int:
    """Bytes of a quantity such as 8Gi or 3g."""
    number, unit = re.fullmatch(r"(\d+)([gGmM])i?", text).groups()
    return int(number) * (2**30 if unit in "gG" else 2**20)


def tool(name: str) -> str:
    """A program of the tests' venv."""
    return str(Path(sys.executable).with_name(name))


def test_dockerfile_is_clean() -> None:
    """hadolint finds nothing; what it is told to ignore is two rules about pinning."""
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True)
    assert done.returncode == 0, done.stdout
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"ignore=(\w+)", text)) == {"DL3006", "DL3008"}


def test_dockerfile_copies_what_exists_and_is_sent() -> None:
    """Each COPY's source is in the repository and let through by .dockerignore."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sources = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in sent


def test_container_is_not_root_and_hears_signals() -> None:
    """Numeric user, exec forms, a health check on the worker's own port."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    worker = text[text.index(" AS worker") : text.index(" AS demo")]
    assert "USER 10001:10001" in worker
    assert json.loads(re.search(r"^ENTRYPOINT (.+)$", worker, re.MULTILINE)[1]) == [
        "stylegen-worker"
    ]
    check = json.loads(re.search(r"HEALTHCHECK .*\\\n\s+CMD (.+)$", worker, re.MULTILINE)[1])
    compile(check[2], "healthcheck", "exec")
    assert "STYLEGEN_HEALTH_PORT=9100" in worker and "/livez" in check[2]
    assert set(re.findall(r"\bSTYLEGEN_\w+", text)) <= SETTINGS


def test_container_can_compile() -> None:
    """What STYLEGEN_COMPILE needs is in the image that runs: a compiler and Python's headers."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    worker = text[text.index(" AS worker") : text.index(" AS demo")]
    installed = re.search(r"apt-get install ([^&]+)&&", worker)[1].split()
    assert {"g++", "python3-dev"} <= set(installed)
    (place,) = re.findall(r"--tmpfs (\S+)", (ROOT / "docs/operating.md").read_text("utf-8"))
    assert "exec" in re.split("[:,]", place), "Docker's tmpfs forbids running what lies in it"


def test_compose_follows_its_specification() -> None:
    """The compose specification's own schema, and what we promise of the worker."""
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(ROOT / "compose.yaml")], capture_output=True)
    assert done.returncode == 0, done.stdout
    services = load(ROOT / "compose.yaml")["services"]
    assert set(services) == {"rabbitmq", "s3", "models", "worker", "backend"}
    assert services["worker"]["read_only"] and services["worker"]["cap_drop"] == ["ALL"]
    assert not [name for name, service in services.items() if "ports" in service]
    assert services["rabbitmq"]["image"].startswith("rabbitmq:4.")
    assert set(services["worker"]["environment"]) <= SETTINGS


def test_compose_fits_the_defaults() -> None:
    """The worker may drain as long as its own limit, and its LoRA cache fits into memory's /tmp."""
    worker = load(ROOT / "compose.yaml")["services"]["worker"]
    drain = Settings.model_fields["stylegen_drain_timeout"].default
    assert int(worker["stop_grace_period"].removesuffix("m")) * 60 > drain
    cache = re.search(r"STYLEGEN_CACHE_BYTES=(\d+)", (ROOT / "Dockerfile").read_text("utf-8"))
    (place,) = worker["tmpfs"]
    assert int(cache[1]) + MAX_LORA_BYTES <= size(place.removeprefix("/tmp:size="))


def as_process(service: dict[str, Any], here: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """A service's command and environment, with its host names and volume put in this place."""

    def put(text: str) -> str:
        names = "|".join(rf"(?<!\w){re.escape(name)}" for name in here)
        return re.sub(names, lambda match: here[match[0]], text)

    words = [*service.get("entrypoint", ["stylegen-worker"]), *service.get("command", [])]
    bare = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
        if name in os.environ
    }
    own = {name: put(str(value)) for name, value in service.get("environment", {}).items()}
    return [tool(words[0]), *map(put, words[1:])], bare | own


def free_address() -> str:
    """An address that nobody listens on."""
    with LoadReceiver(lambda webhook: 200) as probe:
        return f"127.0.0.1:{probe.server_port}"


def wait_until_open(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens, as compose waits for a health check."""
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing listens on {address}")


def test_compose_rehearsal(rabbit: RabbitNode, tmp_path: Path) -> None:
    """The services' own commands, as processes: six pictures are ordered, drawn and told."""
    s3, backend = free_address(), free_address()
    here = {
        "stylegen:stylegen@rabbitmq:5672": rabbit.url.partition("//")[2].split("/")[0],
        "s3:9000": s3,
        "9000": s3.rpartition(":")[2],
        "0.0.0.0:8000": backend,
        "backend:8000": backend,
        "0.0.0.0": "127.0.0.1",
        "/models": str(tmp_path),
    }
    services = load(ROOT / "compose.yaml")["services"]
    command, environment = as_process(services["models"], here)
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    processes = []
    try:
        for name in ("s3", "worker"):
            command, environment = as_process(services[name], here)
            with (tmp_path / f"{name}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd="/")
                )
            if name == "s3":
                wait_until_open(s3, processes[0])
        command, environment = as_process(services["backend"], here)
        command = [word.replace("--rate=0.5", "--rate=10") for word in command]
        done = subprocess.run(
            command, env=environment, timeout=900, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + (tmp_path / "worker.log").read_text()
        assert done.stdout.count("/complete {") == 6 and done.stdout.count("/progress {") == 30
        processes[1].send_signal(signal.SIGTERM)
        assert processes[1].wait(60) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest_is_valid(path: Path) -> None:
    """Kubernetes' schema for its own kinds, ours for the custom ones; strict: no unknown field."""
    body = load(path)
    schema = Path(__file__).parent / "schemas" / f"{body['kind']}.json"
    if schema.exists():
        jsonschema.validate(body, json.loads(schema.read_text(encoding="utf-8")))
    else:
        kubernetes_validate.validate(body, KUBERNETES, strict=True)
    assert body["metadata"].get("namespace", body["metadata"]["name"]) == "stylegen"


def test_validation_does_find_mistakes() -> None:
    """A misspelt field is refused by both kinds of schema."""
    wrong = manifest("Deployment")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)
    wrong = manifest("ScaledObject")
    wrong["spec"]["triggers"][0]["metadata"]["queue"] = "x"
    schema = Path(__file__).parent / "schemas/ScaledObject.json"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(schema.read_text(encoding="utf-8")))


@pytest.mark.parametrize("folder", ["base", "monitoring"])
def test_kustomization_names_each_file(folder: str) -> None:
    """No manifest is forgotten, none is missing."""
    listed = load(DEPLOY / folder / "kustomization.yaml")
    made = listed.get("configMapGenerator", [])
    generated = [name for each in made for kind in ("files", "envs") for name in each.get(kind, [])]
    files = {path.name for path in (DEPLOY / folder).iterdir()} - {"kustomization.yaml"}
    assert files == {*listed["resources"], *generated}


def test_parts_fit_each_other() -> None:
    """Names, labels, ports and secrets that one manifest uses are given by another."""
    pod = manifest("Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for kind, where in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("ServiceMonitor", "selector"),
    ):
        assert manifest(kind)["spec"][where]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    (port,) = container["ports"]
    (endpoint,) = manifest("ServiceMonitor")["spec"]["endpoints"]
    assert port["name"] == endpoint["port"] == manifest("Service")["spec"]["ports"][0]["name"]
    assert str(port["containerPort"]) == configured()["STYLEGEN_HEALTH_PORT"]
    scaled = manifest("ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == manifest("Deployment")["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    authentication = manifest("TriggerAuthentication")
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    (reference,) = authentication["spec"]["secretTargetRef"]
    secrets = [
        each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each
    ]
    assert {each["name"] for each in secrets} == {reference["name"]}
    page = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    required = [each["key"] for each in secrets if not each.get("optional")]
    assert not [key for key in (*required, reference["key"]) if f"`{key}`" not in page]


def test_deployment_keeps_its_promises() -> None:
    """One GPU, no root, read-only, probes, secrets by reference, time enough to finish a job."""
    spec = manifest("Deployment")["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert "replicas" not in spec and manifest("ScaledObject")["spec"]["minReplicaCount"] == 0
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
    settings = configured()
    job, drain = (int(settings[f"STYLEGEN_{name}_TIMEOUT"]) for name in ("JOB", "DRAIN"))
    assert job < drain < pod["terminationGracePeriodSeconds"]
    assert "STYLEGEN_PREFETCH" not in settings, "four times as many as are drawn is the default"
    (scratch,) = [each["emptyDir"] for each in pod["volumes"] if "emptyDir" in each]
    assert int(settings["STYLEGEN_CACHE_BYTES"]) + MAX_LORA_BYTES < size(scratch["sizeLimit"])
    named = {each["name"] for each in container["env"]} | set(settings)
    (generator,) = load(DEPLOY / "base/kustomization.yaml")["configMapGenerator"]
    assert [each["configMapRef"]["name"] for each in container["envFrom"]] == [generator["name"]]
    assert named <= SETTINGS and not {name for name in settings if re.search("SECRET|TOKEN", name)}
    required = {n.upper() for n, field in Settings.model_fields.items() if field.is_required()}
    assert required <= named
    images = load(DEPLOY / "base/kustomization.yaml")["images"]
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    assert [(image["name"], str(image["newTag"])) for image in images] == [
        (container["image"], parser["DEFAULT"]["version"])
    ]


def test_a_model_that_never_loads_is_restarted() -> None:
    """While a model loads, the startup probe alone is told no; for half an hour at most."""
    (container,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    with HealthServer(Health(RunningJobs()), Metrics(), 0) as loading:
        origin = f"http://127.0.0.1:{loading.port}"
        pages = [origin + probe["httpGet"]["path"] for probe in (startup, liveness)]
        said = [requests.get(page, timeout=20).status_code for page in pages]
    assert said == [503, 200]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800


def counted_by_keda(state: dict[str, Any]) -> int:
    """What KEDA's rabbitmq scaler counts of a queue, by its documentation.

    Over AMQP it sees messages that are ready; over HTTP also those in flight, unless set otherwise.
    """
    (trigger,) = manifest("ScaledObject")["spec"]["triggers"]
    told = trigger["metadata"]
    only_ready = told["protocol"] != "http" or told.get("excludeUnacknowledged") == "true"
    return int(state["messages_ready" if only_ready else "messages"])


def test_busy_workers_are_counted() -> None:
    """A worker whose jobs are all in flight is not sent home: a real broker's own figures."""
    hands = 2 * int(configured()["STYLEGEN_BATCH"])
    (trigger,) = manifest("ScaledObject")["spec"]["triggers"]
    assert int(trigger["metadata"]["value"]) == hands
    address, node = free_address(), RabbitNode()
    (node.folder / "plugins").write_text("[rabbitmq_management].\n")
    with (node.folder / "rabbitmq.conf").open("a") as config:
        config.write(f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {address[10:]}\n")
    with node:
        publish_job(b"{}", url=node.url)
        connection = pika.BlockingConnection(pika.URLParameters(node.url))
        assert connection.channel().basic_get("image_generation")[0]
        page = f"http://guest:guest@{address}/api/queues/%2F/image_generation"
        deadline, state = time.monotonic() + 60, {}
        while not state.get("messages_unacknowledged") and time.monotonic() < deadline:
            time.sleep(0.5)
            state = requests.get(page, timeout=20).json()
        connection.close()
    assert (state["messages_ready"], counted_by_keda(state)) == (0, 1)


def expressions() -> list[str]:
    """Every query of the alert rules and of the dashboard."""
    groups = manifest("PrometheusRule")["spec"]["groups"]
    board = json.loads((DEPLOY / "monitoring/dashboard.json").read_text(encoding="utf-8"))
    queries = [rule["expr"] for group in groups for rule in group["rules"]]
    queries += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m") for query in queries]


@pytest.mark.parametrize("query", expressions())
def test_query_parses_and_uses_known_metrics(query: str) -> None:
    """PromQL's grammar, by Prometheus' parser; only metrics, labels and queues that exist."""
    promql_parser.parse(query)
    names = set(re.findall(r"\b(?:stylegen|rabbitmq)_\w+", query))
    assert names and names <= set(METRICS)
    for name, labels in re.findall(r"\b((?:stylegen|rabbitmq)_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)[=!]", labels)) <= METRICS[name]
    queues = ["image_generation", *affinity_queues("image_generation", 12)]
    dead = [dead_letters(queue) for queue in queues]
    retried = [retry_queue(queue, delay) for queue in queues for delay in RETRY_DELAYS]
    others = [f"{queue}{end}" for queue in queues for end in (".returned", ".control.4f2a", "s")]
    patterns = re.findall(r'\{queue=~"([^"]*)"\}', query)
    assert len(patterns) == query.count("{queue")
    for pattern in patterns:
        every = [*queues, *dead, *retried, *others]
        assert [name for name in every if re.fullmatch(pattern, name)] in (queues, dead, retried)


def test_alerts_ring_when_they_should(tmp_path: Path) -> None:
    """Prometheus' own tool plays recorded series to the rules, the quiet ones too."""
    spec = manifest("PrometheusRule")["spec"]
    for rule in spec["groups"][0]["rules"]:
        del rule["annotations"]
    rules = yaml.safe_dump(spec)
    (tmp_path / "rules.yaml").write_text(rules, encoding="utf-8")
    played = shutil.copy(ROOT / "tests/alerts.yaml", tmp_path)
    command = ["promtool", "test", "rules", played]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    names = set(re.findall(r"alert: (\w+)", rules))
    text = Path(played).read_text(encoding="utf-8")
    rung = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", text))
    assert rung == names == set(re.findall(r"alertname: (\w+)\n\s+exp_alerts: \[\]\n", text))


def test_the_receivers_alert_names_each_error_that_rings_it() -> None:
    """By its chapter of the troubleshooting."""
    groups = manifest("PrometheusRule")["spec"]["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    named = re.findall(
        r"[A-Z_]{8,}", rules["StylegenReceiverRefuses"]["annotations"]["description"]
    )
    kinds = [WebhookError, *WebhookError.__subclasses__()]
    assert sorted(named) == sorted(kind.error_code for kind in kinds)
    chapters = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert all(f"## {name}\n" in chapters for name in named)


def test_worker_has_these_metrics() -> None:
    """Each metric of ours that a query uses is there from the start, with its labels."""
    text = Metrics().page().decode()
    for name, labels in METRICS.items():
        if name.startswith("stylegen"):
            shown, *_ = re.findall(rf"^{name}(?:\{{(.*)\}})? ", text, re.MULTILINE)
            assert labels <= set(re.findall(r"(\w+)=", shown))
    outcomes = re.findall(r'^stylegen_jobs_total\{outcome="(\w+)"\} 0.0$', text, re.MULTILINE)
    assert set(outcomes) == {"complete", "retried", "redelivered", *error_codes()}


def test_the_page_names_each_metric_and_alert() -> None:
    """Every metric of a worker with the values of its labels, and every alert; no other."""
    page = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(stylegen_\w+)` \|(.*)\|$", page, re.MULTILINE))
    shown: dict[str, set[str]] = {}
    for family in Metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = [sample.labels.items() for sample in family.samples]
        shown[name] = {word for each in labels for pair in each for word in pair if pair[0] != "le"}
    assert rows.keys() == shown.keys()
    for name, words in shown.items():
        assert words - error_codes() <= set(re.findall(r"`(\w+)`", rows[name])), name
    rules = manifest("PrometheusRule")["spec"]["groups"][0]["rules"]
    alerts = re.findall(r"^\| `(Stylegen\w+)` \|", page, re.MULTILINE)
    assert alerts == [rule["alert"] for rule in rules]


def bounds(metric: str) -> list[float]:
    """The finite bounds of a histogram's buckets."""
    text = Metrics().page().decode()
    shown = re.findall(rf'^{metric}_bucket\{{.*le="([\d.]+)"', text, re.MULTILINE)
    return [float(bound) for bound in shown]


def test_times_can_reach_their_alerts() -> None:
    """A quantile never exceeds the last bound: each alert's threshold lies within, on a bound."""
    quantile = r"histogram_quantile\(.*?(\w+)_bucket.*?\)\)\)\s*> (\d+)$"
    found = [match for query in expressions() for match in re.findall(quantile, query)]
    assert found == [("stylegen_queue_wait_seconds", "300")]
    for metric, threshold in found:
        assert float(threshold) in bounds(metric)[:-1]
    longest = Settings.model_fields["stylegen_job_timeout"].default
    assert max(bounds("stylegen_stage_seconds")) >= longest


def test_broker_has_these_metrics() -> None:
    """A real broker with its Prometheus plugin tells each metric that a query uses, by queue."""
    address = free_address()
    node = RabbitNode()
    (node.folder / "plugins").write_text("[rabbitmq_prometheus].\n")
    with (node.folder / "rabbitmq.conf").open("a") as config:
        config.write(f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {address[10:]}\n")
    with node:
        publish_job(b"{}", url=node.url)
        text = requests.get(f"http://{address}/metrics/per-object", timeout=20).text
    for metric in (name for name in METRICS if name.startswith("rabbitmq")):
        assert re.search(rf'^{metric}\{{[^}}]*queue="image_generation"[^}}]*\}} \d', text, re.M)


def test_dashboard_asks_the_source_that_is_chosen() -> None:
    """Each panel and query names the one variable that the dashboard has."""
    text = (DEPLOY / "monitoring/dashboard.json").read_text(encoding="utf-8")
    (variable,) = json.loads(text)["templating"]["list"]
    assert set(re.findall(r"\$\{(\w+)\}", text)) == {variable["name"]}


def test_dashboard_panels_have_room() -> None:
    """Panels do not overlap and have distinct ids; each metric is shown."""
    board = json.loads((DEPLOY / "monitoring/dashboard.json").read_text(encoding="utf-8"))
    text = json.dumps(board["panels"])
    assert not [name for name in METRICS if name not in text]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
