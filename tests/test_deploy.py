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
from collections.abc import Iterator
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
from certificates import server_context, tls_receiver, write_chain
from pages import blocks
from rabbit import Broker, RabbitNode
from s3_server import OwnerEnforcedGate

from stylegen.errors import error_codes
from stylegen.fleet.affinity import affinity_queues
from stylegen.fleet.loadgen import LoadReceiver
from stylegen.job import StorageError, WebhookError
from stylegen.queue import dead_letters, publish_job
from stylegen.queue.retries import retry_queue
from stylegen.settings import RETRY_DELAYS, Settings
from stylegen.storage import MAX_LORA_BYTES, make_s3_store, picture_key
from stylegen.storage.keys import JPEG_TYPE
from stylegen.webhook import send_progress
from stylegen.worker import Health, HealthServer, Metrics, RunningJobs

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FOLDERS = ("base", "monitoring")
"""What is applied; the other folders are components of it."""
KUBERNETES = ("1.30", "1.35", "1.36", "1.37")
"""The oldest version that the manifests are for, and those that are supported today."""
METRICS = {
    "stylegen_jobs_total": {"outcome"},
    "stylegen_jobs_in_progress": set(),
    "stylegen_stage_seconds_bucket": {"stage"},
    "stylegen_queue_wait_seconds_bucket": set(),
    "stylegen_lora_cache_total": {"result"},
    "stylegen_webhook_deliveries_total": {"event", "result"},
    "stylegen_breaker_trips_total": set(),
    "stylegen_device_memory_bytes": set(),
    "stylegen_c2pa_certificate_expiry_timestamp_seconds": set(),
    "rabbitmq_queue_messages_ready": {"queue"},
    "rabbitmq_queue_consumers": {"queue"},
}
SETTINGS = {name.upper() for name in Settings.model_fields}


def load(path: Path) -> Any:
    """A YAML file's one document."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


MANIFESTS = [
    DEPLOY / folder / name
    for folder in FOLDERS
    for name in load(DEPLOY / folder / "kustomization.yaml")["resources"]
    if name != "commands.yaml"  # several in one file, whole only when they are rendered
]


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
    """Each COPY's source is let through by .dockerignore, and is there; but for a pattern's."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sources = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        name = re.sub(r"[][]", "", source)
        assert (name != source or (ROOT / name).exists()) and f"!{name}" in sent


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


def test_compose_rehearsal(rabbit: Broker, tmp_path: Path) -> None:
    """The services' own commands, as processes: six pictures are ordered, drawn and told."""
    s3, backend = free_address(), free_address()
    here = {
        "stylegen:stylegen@rabbitmq:5672/%2F": rabbit.url.partition("//")[2],
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
        command = [*(word.replace("--rate=0.5", "--rate=10") for word in command), "--steps=8"]
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


def check_manifest(body: dict[str, Any]) -> None:
    """Kubernetes' schemas for its own kinds, ours for the custom ones; strict: no unknown field."""
    schema = Path(__file__).parent / "schemas" / f"{body['kind']}.json"
    if schema.exists():
        jsonschema.validate(body, json.loads(schema.read_text(encoding="utf-8")))
    else:
        for version in KUBERNETES:
            kubernetes_validate.validate(body, version, strict=True)
    assert body["metadata"].get("namespace", body["metadata"]["name"]) == "stylegen"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest_is_valid(path: Path) -> None:
    """As it stands in its file."""
    check_manifest(load(path))


def test_validation_does_find_mistakes() -> None:
    """A misspelt field is refused by both kinds of schema."""
    wrong = manifest("Deployment")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)
    wrong = manifest("ScaledObject")
    wrong["spec"]["triggers"][0]["metadata"]["queue"] = "x"
    schema = Path(__file__).parent / "schemas/ScaledObject.json"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(schema.read_text(encoding="utf-8")))


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomization_names_each_file(folder: str) -> None:
    """No manifest is forgotten, none is missing."""
    listed = load(DEPLOY / folder / "kustomization.yaml")
    made = [*listed.get("configMapGenerator", []), *listed.get("secretGenerator", [])]
    generated = [name for each in made for kind in ("files", "envs") for name in each.get(kind, [])]
    patches = [each["path"] for each in listed.get("patches", [])]
    named = {*listed["resources"], *generated, *listed.get("configurations", []), *patches}
    files = {path.name for path in (DEPLOY / folder).iterdir()} - {"kustomization.yaml"}
    assert files | {"secrets.env"} == named | {"secrets.env"}, "secrets.env is never committed"


SECRETS = """INTERNAL_API_TOKEN=t0ken
RABBITMQ_URL=amqps://worker:password@rabbitmq:5671/jobs
RABBITMQ_MANAGEMENT_URL=https://keda:password@rabbitmq:15671/jobs
AWS_ACCESS_KEY_ID=key
AWS_SECRET_ACCESS_KEY=secret
AWS_SESSION_TOKEN=session
"""
Rendered = dict[tuple[str, str], dict[str, Any]]


def render(place: Path, *, secrets: str = SECRETS, overlay: str = "") -> Rendered:
    """What kustomize makes of the folders, or of an overlay of them; by kind and bare name."""
    shutil.copytree(DEPLOY, place)
    (place / "base/secrets.env").write_text(secrets, "ascii")
    (place / "private-ca/ca.pem").write_text("an authority", "ascii")
    if overlay:
        (place / "ours").mkdir()
        (place / "ours/kustomization.yaml").write_text(overlay, "ascii")
    text = ""
    for folder in ("ours",) if overlay else FOLDERS:
        command = ["kubectl", "kustomize", str(place / folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        text += f"---\n{done.stdout}"
    bodies = list(yaml.safe_load_all(text))
    names = [re.sub("-[a-z0-9]{10}$", "", each["metadata"]["name"]) for each in bodies]
    assert len({(b["kind"], n) for b, n in zip(bodies, names, strict=True)}) == len(bodies)
    return {(b["kind"], name): b for b, name in zip(bodies, names, strict=True)}


def pod_spec(body: dict[str, Any]) -> dict[str, Any]:
    """The pod of a Deployment or a CronJob."""
    spec: dict[str, Any] = body["spec"]
    return dict(spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"])


def overlay_of_the_page() -> str:
    """The operator's own kustomization.yaml, as the page on Kubernetes has it."""
    (text,) = blocks(ROOT / "docs/kubernetes.md", "yaml")
    return text


@pytest.fixture(scope="module", name="rendered")
def _rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return render(tmp_path_factory.mktemp("kustomize") / "deploy")


@pytest.mark.parametrize("own", [False, True], ids=["as it is", "with each component"])
def test_kustomize_renders_valid_manifests(own: bool, tmp_path: Path) -> None:
    """A real kustomize; every kind is valid, and what a pod names is there under that name."""
    overlay = overlay_of_the_page() if own else ""
    rendered = render(tmp_path / "deploy", overlay=overlay)
    components = load(DEPLOY / "base/kustomization.yaml") if not own else yaml.safe_load(overlay)
    assert not own or len(components["components"]) == len({p.name for p in DEPLOY.iterdir()}) - 2
    for body in rendered.values():
        check_manifest(body)
    made = {(kind, body["metadata"]["name"]) for (kind, _), body in rendered.items()}
    for kind, name in [key for key in rendered if key[0] in ("Deployment", "CronJob")]:
        pod = pod_spec(rendered[kind, name])
        (container,) = pod["containers"]
        assert container["image"].startswith("registry.example.com/stylegen:")
        wanted = {("ConfigMap", each["configMapRef"]["name"]) for each in container["envFrom"]}
        keys = [
            each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each
        ]
        wanted |= {("Secret", each["name"]) for each in keys}
        wanted |= {
            ("ConfigMap", v["configMap"]["name"]) for v in pod["volumes"] if "configMap" in v
        }
        assert wanted <= made and len(wanted) == (3 if own else 2)
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in pod["volumes"]}
        assert "AWS_SESSION_TOKEN" in {each["key"] for each in keys}


def test_a_new_secret_rolls_the_pods(rendered: Rendered, tmp_path: Path) -> None:
    """Its name changes with its content, wherever it is used, KEDA's way to it included."""
    other = render(tmp_path / "deploy", secrets=SECRETS.replace("t0ken", "another"))
    for kind, path in (("Deployment", "template"), ("TriggerAuthentication", "secretTargetRef")):
        (name,) = {name for each, name in rendered if each == kind}
        before, after = (json.dumps(each[kind, name]["spec"][path]) for each in (rendered, other))
        named = [re.findall(r'"name": "(stylegen-[a-z0-9]{10})"', text) for text in (before, after)]
        secret = [each["Secret", "stylegen"]["metadata"]["name"] for each in (rendered, other)]
        assert secret[0] in named[0] and secret[1] in named[1] and secret[0] not in named[1]


def test_commands_are_models_of_jobs(rendered: Rendered) -> None:
    """None runs by itself; each command line is one that its program takes, with its settings."""
    commands = {name: body for (kind, name), body in rendered.items() if kind == "CronJob"}
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(stylegen-\w+)` \|", page, re.MULTILINE))
    assert set(commands) == rows and len(rows) == 6
    deployed = pod_spec(rendered["Deployment", "stylegen"])
    (worker,) = deployed["containers"]
    for name, body in commands.items():
        assert body["spec"]["suspend"] and body["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
        pod = pod_spec(body)
        (container,) = pod["containers"]
        for key in ("securityContext", "serviceAccountName", "automountServiceAccountToken"):
            assert pod[key] == deployed[key]
        assert container["securityContext"] == worker["securityContext"]
        given = {each["name"]: each.get("value") for each in container["env"]}
        assert {n for n in given if n.isupper()} - {"ID", "DAYS", "HF_HUB_OFFLINE"} <= SETTINGS
        if name == "stylegen-check":
            assert container["resources"]["limits"] == worker["resources"]["limits"]
            assert pod["tolerations"] == deployed["tolerations"]
        assert ("models" in {each["name"] for each in pod["volumes"]}) == (
            name in ("stylegen-check", "stylegen-preload")
        )
    policy = rendered["NetworkPolicy", "stylegen"]["spec"]["podSelector"]["matchExpressions"]
    label = commands["stylegen-check"]["metadata"]["labels"]["app.kubernetes.io/name"]
    assert policy[0]["values"] == ["stylegen", label]


def test_spot_nodes_have_half_a_minute(tmp_path: Path) -> None:
    """The jobs are back in the queue before the pod's time is over, and that before the node's."""
    rendered = render(tmp_path / "deploy", overlay=overlay_of_the_page())
    pod = pod_spec(rendered["Deployment", "stylegen"])
    drain = int(rendered["ConfigMap", "stylegen"]["data"]["STYLEGEN_DRAIN_TIMEOUT"])
    assert drain < pod["terminationGracePeriodSeconds"] < 30
    assert len(pod["tolerations"]) == 3


def test_an_authority_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Any) -> None:
    """By the component's variables a bucket and a receiver are trusted, and else they are not."""
    (tls,) = [
        dict(each.split("=") for each in made["literals"])
        for made in load(DEPLOY / "private-ca/kustomization.yaml")["configMapGenerator"]
        if "literals" in made
    ]
    chain, key = write_chain(tmp_path, "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    s3.client().create_bucket(Bucket="behind-tls")
    with OwnerEnforcedGate(s3) as gate, tls_receiver(server_context(chain, key)) as backend:
        gate.socket = server_context(chain, key).wrap_socket(gate.socket, server_side=True)
        endpoint = gate.endpoint_url.replace("http:", "https:")

        def put() -> str:
            store = make_s3_store("behind-tls", region="us-east-1", endpoint_url=endpoint)
            return store.put(picture_key(500), b"a picture", JPEG_TYPE)

        with pytest.raises(StorageError, match="SSLError"):
            put()
        for name, path in tls.items():
            assert path == "/etc/stylegen/ca.pem"
            monkeypatch.setenv(name, str(chain))
        assert put().startswith("https://")
        assert send_progress(backend.url, 1, 1, 2, token="t0ken")


def test_parts_fit_each_other() -> None:
    """Names, labels, ports and secrets that one manifest uses are given by another."""
    pod = manifest("Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "ServiceMonitor"):
        assert manifest(kind)["spec"]["selector"]["matchLabels"] == labels
    (rule,) = manifest("NetworkPolicy")["spec"]["podSelector"]["matchExpressions"]
    assert rule["operator"] == "In" and labels[rule["key"]] in rule["values"]
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


@pytest.fixture(name="watched", scope="module")
def _watched() -> Iterator[tuple[RabbitNode, str, str]]:
    """A node, and the addresses of its management and of its metrics."""
    management, metrics = free_address(), free_address()
    node = RabbitNode()
    (node.folder / "plugins").write_text("[rabbitmq_management, rabbitmq_prometheus].\n")
    with (node.folder / "rabbitmq.conf").open("a") as config:
        for name, address in (("management", management), ("prometheus", metrics)):
            config.write(f"{name}.tcp.ip = 127.0.0.1\n{name}.tcp.port = {address[10:]}\n")
    with node:
        yield node, management, metrics


def test_busy_workers_are_counted(watched: tuple[RabbitNode, str, str]) -> None:
    """A worker whose jobs are all in flight is not sent home: a real broker's own figures."""
    hands = 2 * int(configured()["STYLEGEN_BATCH"])
    (trigger,) = manifest("ScaledObject")["spec"]["triggers"]
    assert int(trigger["metadata"]["value"]) == hands
    node, address, _ = watched
    node.take_all("image_generation")  # another test's
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


def test_broker_has_these_metrics(watched: tuple[RabbitNode, str, str]) -> None:
    """A real broker with its Prometheus plugin tells each metric that a query uses, by queue."""
    node, _, address = watched
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
