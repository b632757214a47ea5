"""One job's flow on the installed package: the same picture each time, and no trace of another."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import cpu_offload_with_hook
import torch
from conftest import TOKEN
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from s3_server import S3Server
from safetensors.torch import load_file, save_file
from standardwebhooks import Webhook

from stylegen.job import GenerationJob, InvalidMessage, WebhookError, check_job, job_digest
from stylegen.logs import set_up_logging
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.signature.provenance import read_provenance
from stylegen.storage import FolderStore, ObjectTooLarge, S3Store, Store, store_result
from stylegen.storage.cache import LoraFiles
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Labelling, Parts, handle_generation_task, main

Order = dict[str, Any]


def picture(parts: Parts, order: Order, **changes: Any) -> bytes:
    """Do a job that must succeed; the stored JPEG's bytes."""
    outcome = handle_generation_task(order | changes, parts)
    assert outcome.error_code is None, outcome.error_message
    return result_file(parts, order).read_bytes()


def result_file(parts: Parts, order: Order) -> Path:
    """Where a job's result lies in folder storage."""
    return parts.store.root / f"generations/gen_{order['generation_id']}.jpg"  # type: ignore


def pixels(jpeg: bytes) -> np.ndarray:
    """A picture without its label, signature's corner left out: ``[height, width - 128, 3]``."""
    with Image.open(BytesIO(jpeg)) as image:
        return np.asarray(image).astype(int)[:, :-128]


def test_same_message_same_bytes(parts: Parts, order: Order) -> None:
    """A redelivered job is drawn once more, to the identical object: what diffusers draws."""
    drawn: list[Path] = []

    def draw(job: GenerationJob, lora: Path, **options: Any) -> Image.Image:
        drawn.append(lora)
        return parts.draw(job, lora, **options)

    counting = replace(parts, draw=draw)
    first = picture(counting, order)
    assert picture(counting, order) == first and len(drawn) == 2
    root: Path = parts.store.root  # type: ignore[attr-defined]
    stock = StableDiffusionPipeline.from_pretrained(root / "pocket", torch_dtype=torch.float32)
    stock.scheduler = DPMSolverMultistepScheduler.from_config(stock.scheduler.config)
    stock.load_lora_weights(root / "models", weight_name="style_10.safetensors")
    expected = stock(
        " ".join(order["prompt_tags"]),
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(42),
    ).images[0]
    difference = np.abs(pixels(first) - np.asarray(expected).astype(int)[:, :-128])
    assert difference.mean() < 2  # JPEG's own
    assert np.asarray(expected).std() > 10


def test_seed_zero_is_a_seed(parts: Parts, order: Order) -> None:
    """0 is not "missing": it differs from the default, 42."""
    zero, default, explicit = (
        picture(parts, order, **seed) for seed in ({"seed": 0}, {}, {"seed": 42})
    )
    assert np.abs(pixels(zero) - pixels(default)).mean() > 3
    assert default == explicit


def test_the_time_of_each_stage_is_kept(parts: Parts, order: Order) -> None:
    """By the names of docs/operating.md, which dashboards and alerts ask for."""
    handle_generation_task(order, parts)
    stages = {
        sample.labels["stage"]: sample.value
        for metric in parts.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "stylegen_stage_seconds_count"
    }
    assert stages == dict.fromkeys(("lora", "draw", "encode", "upload", "notify"), 1)


def test_no_artist_leaks_into_the_next_job(parts: Parts, order: Order) -> None:
    """Job B after job A equals job B alone, bit for bit; and A differs from B."""
    other = {"style_id": 11, "lora_model_url": "s3://models/style_11.safetensors"}
    alone = picture(parts, order)
    first = picture(parts, order, **other)
    assert np.abs(pixels(first) - pixels(alone)).mean() > 3  # their labels differ anyway
    assert picture(parts, order) == alone


def test_further_loras_reach_the_drawing(parts: Parts, order: Order) -> None:
    """Each of a job's files, the artist's own first; a job without further ones names none."""
    root: Path = parts.store.root  # type: ignore[attr-defined]
    drawn: list[list[bytes]] = []

    def draw(job: GenerationJob, lora: Path, *, on_step: Any, **more: Any) -> Image.Image:
        drawn.append([path.read_bytes() for path in (lora, *more.pop("extra_loras", ()))])
        assert not more
        return Image.new("RGB", job.resolution)

    extra = {"url": "s3://models/style_11.safetensors", "scale": 0.5}
    for extras in ([extra], []):
        picture(replace(parts, draw=draw), order, extra_loras=extras)
    own, other = ((root / f"models/style_{number}.safetensors").read_bytes() for number in (10, 11))
    assert drawn == [[own, other], [own]]


def test_no_artist_leaks_after_a_failure(parts: Parts, order: Order) -> None:
    """A job that fails while its LoRA is applied leaves the base model as it was."""
    alone = picture(parts, order)

    def fail(step: int) -> None:
        if step == 2:
            raise RuntimeError("/secret/path")

    outcome = handle_generation_task(order, parts, on_step=fail)
    assert outcome.error_code == "GENERATION_FAILED"
    assert "/secret/path" not in str(outcome.error_message)
    assert picture(parts, order) == alone


def test_no_files_are_left(parts: Parts, order: Order, tmp_path: Path, monkeypatch: Any) -> None:
    """The LoRA's temporary file goes with its job, whether it succeeds or fails."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    picture(parts, order)
    handle_generation_task(order | {"lora_model_url": "s3://models/none.safetensors"}, parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ratio", "size"), [("2:2", (768, 768)), ("16:9", (512, 512))])
def test_aspect_ratios(
    parts: Parts, order: Order, backend: WebhookReceiver, ratio: str, size: tuple[int, int]
) -> None:
    """The ratio reaches the picture; an unknown one falls back, and the metadata shows it."""
    picture(parts, order, aspect_ratio=ratio)
    with Image.open(result_file(parts, order)) as stored:
        assert stored.size == size
    (complete,) = backend.wait_for(1, "complete")
    metadata = complete.body["metadata"]
    assert (metadata["width"], metadata["height"]) == size


@pytest.mark.parametrize(("profile", "steps"), [(None, 6), ("ays", 10), ("guidance_interval", 6)])
def test_steps_are_those_that_were_taken(
    parts: Parts, order: Order, backend: WebhookReceiver, profile: str | None, steps: int
) -> None:
    """Of every profile: in the metadata, in the progress, and in a full label."""
    taken: list[int] = []
    full = replace(parts, labelling=Labelling("pocket", level="full"))
    fields = order | {"num_inference_steps": 6, "speed_profile": profile}
    handle_generation_task(fields, full, on_step=taken.append)
    assert taken == list(range(steps + 1))
    (complete,) = backend.wait_for(1, "complete")
    assert complete.body["metadata"]["steps"] == steps
    progress = [hook.body["progress"] for hook in backend.wait_for(5, "progress")]
    reached = [next(n for n in taken if 100 * n >= part * steps) for part in (0, 25, 50, 75, 90)]
    assert [(p["current_step"], p["total_steps"]) for p in progress] == [
        (step, steps) for step in reached
    ]
    assert f"Steps: {steps}," in read_provenance(result_file(parts, order))["infotext"]


def test_the_metadata_are_the_jobs(parts: Parts, order: Order, backend: WebhookReceiver) -> None:
    """Each of them, where none is a default."""
    changes = {"seed": 7, "guidance_scale": 3, "scheduler": "euler", "aspect_ratio": "2:2"}
    picture(parts, order, **changes)
    (complete,) = backend.wait_for(1, "complete")
    assert complete.body == {
        "generation_id": 500,
        "result_url": result_file(parts, order).as_uri(),
        "metadata": {
            "seed": 7,
            "steps": 4,
            "guidance_scale": 3,
            "scheduler": "euler",
            "width": 768,
            "height": 768,
        },
    }


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_the_digest_is_that_of_the_stored_picture(
    pocket: Path, order: Order, backend: WebhookReceiver, s3: S3Server, tmp_path: Path, kind: str
) -> None:
    """In the manifest and in the bucket's metadata; also where an earlier worker had stored it."""
    store: Store = FolderStore(tmp_path)
    if kind == "bucket":
        for bucket in ("digests", "models"):
            s3.client().create_bucket(Bucket=bucket)
        lora = str(pocket / "models/style_10.safetensors")
        s3.client().upload_file(lora, "models", "style_10.safetensors")
        store = S3Store("digests", s3.client())
    else:
        shutil.copytree(pocket / "models", tmp_path / "models")
    shades = iter(("red", "blue", "green"))

    def draw(job: GenerationJob, *_: Any, **__: Any) -> Image.Image:
        return Image.new("RGB", job.resolution, next(shades))  # as on another device

    parts = Parts(draw, store, (backend.url,), TOKEN, idempotent=True)
    stored_first = store_result(store, 500, b"of an earlier worker", job_digest(check_job(order)))
    for number in (500, 501):
        outcome = handle_generation_task(order | {"generation_id": number}, parts)
        assert outcome.error_code is None
        data = store.read(f"generations/gen_{number}.jpg") or b""
        digest = hashlib.sha256(data).hexdigest()
        manifest = json.loads(store.read(f"manifests/gen_{number}.json") or b"")
        if kind == "bucket" or number == 501:  # a folder's file is replaced by the same job
            assert (data[:2] == b"\xff\xd8") is (number == 501)
        assert manifest["picture"] == digest
        if kind == "bucket":
            key = f"generations/gen_{number}.jpg"
            head = s3.client().head_object(Bucket="digests", Key=key)
            assert head["Metadata"]["sha256"] == digest
    assert stored_first[1] == hashlib.sha256(b"of an earlier worker").hexdigest()


def test_the_picture_says_what_it_is(parts: Parts, order: Order) -> None:
    """The stored JPEG carries the artist and the generated-media label, and no prompt."""
    data = picture(parts, order)
    found = read_provenance(data)
    assert found["artist"] == order["artist_name"]
    assert "trainedAlgorithmicMedia" in str(found)
    assert b"heart" not in data


def test_customers_words_reach_no_log(
    parts: Parts, order: Order, s3: S3Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor the artist's name: of jobs that are drawn, refused or fail, by no library, at DEBUG."""
    client, models = s3.client(), parts.store.root / "models"  # type: ignore[attr-defined]
    for bucket in ("words", "models"):
        client.create_bucket(Bucket=bucket)
    client.upload_file(str(models / "style_10.safetensors"), "models", "style_10.safetensors")
    bucket = replace(
        parts,
        store=S3Store("words", client),
        labelling=Labelling("pocket", level="full", copyright="{artist}"),
        idempotent=True,
    )
    words = order | {
        "num_inference_steps": 2,
        "prompt_tags": ["Quillwort", "heart, " * 90],
        "negative_prompt": "Bogmyrtle, " * 40,
        "artist_name": "Cloudberry",
    }
    changes = [
        {},
        {"prompt_tags": ["(Quillwort)1.2"], "prompt_syntax": "compel", "aspect_ratio": "Quillwort"},
        {"prompt_tags": ['("Quillwort", "b").blend(1)'], "prompt_syntax": "compel"},
        {"artist_name": "Cloudberry\ue000"},
        {"artist_name": "Cloudberry" * 40},
        {"negative_prompt": "Bogmyrtle" * 999_999},
        {"prompt_tags": [["Quillwort"]], "negative_prompt": ["Bogmyrtle"]},
    ]
    log = StringIO()
    logging.root.setLevel(logging.DEBUG)
    set_up_logging("DEBUG", stream=log)
    outcomes = [
        handle_generation_task(words | {"generation_id": 600 + number} | change, bucket)
        for number, change in enumerate(changes)
    ]
    codes = [outcome.error_code for outcome in outcomes]
    invalid = "INVALID_MESSAGE"
    assert codes == [None, None, invalid, "SIGNATURE_UNRENDERABLE", *[invalid] * 3]
    picture = client.get_object(Bucket="words", Key="generations/gen_600.jpg")["Body"].read()
    assert all(word in picture for word in (b"Quillwort", b"Bogmyrtle", b"Cloudberry"))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    said = log.getvalue() + "".join(capfd.readouterr())
    assert not [word for word in ("Quillwort", "Bogmyrtle", "Cloudberry") if word in said]
    at_debug = {line["name"].split(".")[0] for line in lines if line["levelname"] == "DEBUG"}
    assert at_debug == {"stylegen"}


@pytest.mark.parametrize("kind", ["pickle", "text", "stranger", "nan", "partial"])
def test_bad_loras(
    parts: Parts, order: Order, backend: WebhookReceiver, pocket: Path, kind: str
) -> None:
    """Whatever is wrong with a LoRA's file, it is `LORA_INVALID`, and nothing is delivered."""
    good = load_file(pocket / "models/style_10.safetensors")
    path = pocket / "models" / f"{kind}.safetensors"
    stranger = {f"unet.no.such.{half}.weight": torch.ones(4, 4) for half in ("lora_A", "lora_B")}
    if kind == "pickle":
        torch.save(good, path)
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "stranger":
        save_file(stranger, path)
    elif kind == "nan":
        save_file({name: tensor * torch.nan for name, tensor in good.items()}, path)
    else:
        save_file(good | stranger, path)
    bad = order | {"lora_model_url": f"s3://models/{kind}.safetensors", "generation_id": kind}
    outcome = handle_generation_task(bad, parts)
    assert outcome.error_code == "LORA_INVALID"
    (failed,) = backend.wait_for(1, "failed")
    assert (failed.body["error_code"], failed.body["retry_count"]) == ("LORA_INVALID", 0)
    assert str(pocket) not in failed.body["error_message"]
    assert not result_file(parts, bad).exists()


@pytest.mark.parametrize("cached", [False, True])
def test_the_lora_that_is_wrong_is_named(
    parts: Parts, order: Order, tmp_path: Path, cached: bool
) -> None:
    """By its field, as it stands in the message: the style's own, or one of the extra ones."""
    loras = LoraFiles(parts.store, tmp_path) if cached else None
    undrawable = replace(parts, draw=None, loras=loras)
    own = order["lora_model_url"]
    for field, code, url in (
        ("lora_model_url", "INVALID_MESSAGE", "http://x/y"),
        ("lora_model_url", "LORA_NOT_FOUND", "s3://models/none.safetensors"),
        ("extra_loras.0.url", "INVALID_MESSAGE", "http://x/y"),
        ("extra_loras.0.url", "INVALID_MESSAGE", "s3://models/../x"),
        ("extra_loras.1.url", "LORA_NOT_FOUND", "s3://models/none.safetensors"),
    ):
        extra_urls = [url] if field.endswith("0.url") else [own, url]
        changes: Order = {"extra_loras": [{"url": each} for each in extra_urls]}
        outcome = handle_generation_task(
            order | (changes if "extra" in field else {field: url}), undrawable
        )
        assert outcome.error_code == code
        assert str(outcome.error_message).startswith(f"{field}: ")


@pytest.mark.parametrize(("url", "max_bytes"), [("lora_model_url", 2 * 2**30), ("hand", 5 * 2**20)])
def test_what_is_fetched_and_how_much_of_it(
    parts: Parts, order: Order, url: str, max_bytes: int
) -> None:
    """A LoRA into a ``.safetensors`` file, the artist's hand into a ``.png``, each by its limit."""
    fetched: list[tuple[str, int]] = []

    class Watched(FolderStore):
        """A folder that notes what is fetched and has nothing."""

        def fetch(self, url: str, target: Path, *, max_bytes: int) -> None:
            fetched.append((target.suffix, max_bytes))
            raise ObjectTooLarge("the object is larger than that")

    watched = replace(parts, store=Watched(parts.store.root), draw=None)  # type: ignore
    hand = {"signature": {"image_url": "s3://models/hand.png"}} if url == "hand" else {}
    outcome = handle_generation_task(order | hand, watched)
    suffix, code = (".png", "SIGNATURE_UNRENDERABLE") if hand else (".safetensors", "LORA_INVALID")
    assert fetched == [(suffix, max_bytes)] and outcome.error_code == code


def test_every_event_is_signed(parts: Parts, order: Order, backend: WebhookReceiver) -> None:
    """With a secret, each event of a job verifies, and has an id of its own."""
    secret = "whsec_c3R5bGVnZW4tdGVzdC1zZWNyZXQtMDEyMzQ1Njc4OQ=="
    handle_generation_task(order, replace(parts, secret=secret))
    for webhook in backend.received:
        assert Webhook(secret).verify(webhook.raw, webhook.headers) == webhook.body
    ids = [webhook.headers["webhook-id"] for webhook in backend.received]
    assert ids == [f"progress_500_{done}" for done in (0, 25, 50, 75, 90)] + ["complete_500"]


def test_stranger_never_gets_the_token(parts: Parts, order: Order) -> None:
    """A URL outside the allow-list is not called at all."""
    with WebhookReceiver() as stranger, pytest.raises(InvalidMessage):
        handle_generation_task(order | {"webhook_url": stranger.url}, parts)
    assert not stranger.received


def test_refused_terminal_event_is_raised(parts: Parts, order: Order) -> None:
    """If the receiver does not take the result, the queue's side must know."""
    with WebhookReceiver(lambda webhook: 410) as backend:
        allowed = Parts(parts.draw, parts.store, (backend.url,), TOKEN)
        with pytest.raises(WebhookError):
            handle_generation_task(order | {"webhook_url": backend.url}, allowed)
    assert [webhook.event for webhook in backend.received][-1] == "complete"


def test_unrenderable_name_costs_no_picture(parts: Parts, order: Order) -> None:
    """The signature is tried before the GPU is used."""
    parts = replace(parts, draw=None)
    outcome = handle_generation_task(order | {"artist_name": "𒀀𒈗"}, parts)
    assert outcome.error_code == "SIGNATURE_UNRENDERABLE"


def test_job_file(
    pocket: Path,
    order: Order,
    backend: WebhookReceiver,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    """``worker.py --job FILE``: path, size, seed and seconds on success; 1 on failure."""
    settings = {
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_ORIGINS": backend.url,
        "STYLEGEN_STORAGE_FOLDER": str(pocket),
        "STYLEGEN_MODEL": str(pocket / "pocket"),
        "STYLEGEN_DEVICE": "cpu",
        "STYLEGEN_TORCH_THREADS": "1",
        "RABBITMQ_URL": "amqp://127.0.0.1:1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delattr("stylegen.worker.flow._default_parts")  # a second model would be loaded
    file = tmp_path / "job.json"
    file.write_text(json.dumps(order))
    assert main(["--job", str(file)]) == 0
    shown, progress = capsys.readouterr()
    assert "gen_500.jpg" in shown and "512x512, seed 42" in shown
    assert "drawing" in progress and "4/4" in progress and "step" in progress
    file.write_text(json.dumps(order | {"lora_model_url": "s3://models/none.safetensors"}))
    assert main(["--job", str(file)]) == 1
    assert "LORA_NOT_FOUND" in capsys.readouterr().err
    assert main(["--job", str(tmp_path / "none.json")]) == 1
    assert main(["--check"]) == 1
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if " no: " in line] == ["broker"]


def test_interrupted_job_file(
    order: Order, backend: WebhookReceiver, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Ctrl-C during ``--job`` ends with one line and the shell's usual code."""
    monkeypatch.setenv("INTERNAL_API_TOKEN", TOKEN)
    monkeypatch.setenv("WEBHOOK_ALLOWED_ORIGINS", backend.url)
    monkeypatch.setattr("stylegen.worker.cli.run_job", _interrupt)
    assert main(["--job", str(tmp_path / "job.json")]) == 130
    assert "interrupted" in capsys.readouterr().err


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_memory_modes(pocket: Path, parts: Parts, order: Order) -> None:
    """Sliced attention and offloading draw the same picture, within a grey level or two.

    Tiles are not decoded here: diffusers' `AutoencoderTiny` cuts them for 8x, the pocket has 32x.
    """
    model = str(pocket / "pocket")
    assert load_pipeline(model, device="cpu", vae_tiling=True).vae.use_tiling
    sliced = load_pipeline(model, device="cpu", attention_slicing=True)
    moved = load_pipeline(model, device="cpu")
    cpu_offload_with_hook(moved.unet, "cpu")
    job, lora = check_job(order), pocket / "models/style_10.safetensors"
    plain = np.int16(parts.draw(job, lora))
    for pipeline in (sliced, moved):
        assert np.abs(plain - np.int16(Engine(pipeline).draw(job, lora))).max() <= 2


def test_no_depth_of_nesting_gets_through(parts: Parts, order: Order) -> None:
    """What can just be read, but not written again, is a wrong message and not a dead worker."""
    text = json.dumps(order | {"seed": -1, "pad": 0})
    for depth in range(900, 1000):
        body = text.replace('"pad": 0', f'"pad": {"[" * depth}{"]" * depth}').encode()
        with suppress(InvalidMessage):
            assert handle_generation_task(body, parts).error_code == "INVALID_MESSAGE"


def test_missing_settings_exit_2() -> None:
    """One error names all that is missing or wrong."""
    run = subprocess.run(
        [sys.executable, "worker.py", "--check"],
        cwd=Path(__file__).parent.parent,
        env={"STYLEGEN_DEVICE": "toaster"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    for name in ("INTERNAL_API_TOKEN", "WEBHOOK_ALLOWED_ORIGINS", "STYLEGEN_DEVICE"):
        assert name in run.stderr


def test_half_a_certificate_is_a_wrong_setting(monkeypatch: Any, capsys: Any) -> None:
    """A certificate without its key would silently leave pictures unsigned."""
    monkeypatch.setenv("INTERNAL_API_TOKEN", TOKEN)
    monkeypatch.setenv("WEBHOOK_ALLOWED_ORIGINS", "https://api.example.com")
    monkeypatch.setenv("STYLEGEN_C2PA_CERTIFICATE", "chain.pem")
    assert main(["--check"]) == 2
    assert "STYLEGEN_C2PA_KEY" in capsys.readouterr().err
    monkeypatch.setenv("WEBHOOK_SECRET", "päss word")
    assert main(["--check"]) == 2
    shown = capsys.readouterr().err
    assert "WEBHOOK_SECRET" in shown and "päss" not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOK_ALLOWED_ORIGINS", "api.example.com"),
        ("WEBHOOK_ALLOWED_ORIGINS", "https://api.example.com/v1"),
        ("WEBHOOK_ALLOWED_ORIGINS", "https://api.example.com:99999"),
        ("WEBHOOK_ALLOWED_ORIGINS", "https://user@api.example.com"),
        ("STYLEGEN_RETRY_DELAYS", ","),
    ],
)
def test_a_setting_that_means_nothing_is_refused(
    monkeypatch: Any, capsys: Any, name: str, value: str
) -> None:
    """An origin that no URL could match, pauses that are none: said at the start."""
    monkeypatch.setenv("INTERNAL_API_TOKEN", TOKEN)
    monkeypatch.setenv("WEBHOOK_ALLOWED_ORIGINS", "https://api.example.com,http://127.0.0.1:8000/")
    monkeypatch.setenv(name, value)
    assert main(["--check"]) == 2
    assert name in capsys.readouterr().err


def test_import_is_light() -> None:
    """The worker is imported in a moment, since whatever is heavy waits until it is needed."""
    heavy = {"torch", "diffusers", "transformers", "peft", "boto3", "numpy", "IPython"}
    code = f"import sys, stylegen.worker\nprint({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "set()"
