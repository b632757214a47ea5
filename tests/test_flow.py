"""One job's flow on the installed package: the same picture each time, and no trace of another."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from accelerate import cpu_offload_with_hook
import torch
from conftest import TOKEN
from PIL import Image
from safetensors.torch import load_file, save_file
from standardwebhooks import Webhook

from stylegen.job import InvalidMessage, WebhookError, check_job
from stylegen.engine import Engine
from stylegen.pipeline import load_pipeline
from stylegen.provenance import read_provenance
from stylegen.settings import Settings
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, handle_generation_task, main, make_parts

Order = dict[str, Any]


def picture(parts: Parts, order: Order, **changes: Any) -> bytes:
    """Do a job that must succeed; the stored JPEG's bytes."""
    outcome = handle_generation_task(order | changes, parts)
    assert outcome.error_code is None, outcome.error_message
    return result_file(parts, order).read_bytes()


def result_file(parts: Parts, order: Order) -> Path:
    """Where a job's result lies in folder storage."""
    return parts.store.root / f"generations/gen_{order['generation_id']}.jpg"  # type: ignore


def test_same_message_same_bytes(parts: Parts, order: Order) -> None:
    """A redelivered job makes the identical object."""
    assert picture(parts, order) == picture(parts, order)


def test_seed_zero_is_a_seed(parts: Parts, order: Order) -> None:
    """0 is not "missing": it differs from the default, 42."""
    zero, default, explicit = (
        picture(parts, order, **seed) for seed in ({"seed": 0}, {}, {"seed": 42})
    )
    assert zero != default
    assert default == explicit


def test_no_artist_leaks_into_the_next_job(parts: Parts, order: Order) -> None:
    """Job B after job A equals job B alone, bit for bit; and A differs from B."""
    other = {"style_id": 11, "lora_model_url": "s3://models/style_11.safetensors"}
    alone = picture(parts, order)
    first = picture(parts, order, **other)
    assert first != alone
    assert picture(parts, order) == alone


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


def test_the_picture_says_what_it_is(parts: Parts, order: Order) -> None:
    """The stored JPEG carries the artist and the generated-media label, and no prompt."""
    data = picture(parts, order)
    found = read_provenance(data)
    assert found["artist"] == order["artist_name"]
    assert "trainedAlgorithmicMedia" in str(found)
    assert b"heart" not in data


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
    assert failed.body["error_code"] == "LORA_INVALID"
    assert str(pocket) not in failed.body["error_message"]
    assert not result_file(parts, bad).exists()


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
    file = tmp_path / "job.json"
    file.write_text(json.dumps(order))
    assert main(["--job", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "gen_500.jpg" in shown and "512x512, seed 42" in shown
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
    monkeypatch.setattr("stylegen.worker.run_job", _interrupt)
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


def test_merged_rows_are_a_setting(pocket: Path) -> None:
    """``STYLEGEN_MERGE_LORAS`` reaches the engine."""
    own: dict[str, Any] = {"internal_api_token": "t", "webhook_allowed_origins": "https://a"}
    own |= {"stylegen_model": str(pocket / "pocket"), "stylegen_device": "cpu"}
    settings = Settings(**own, stylegen_storage_folder=pocket, stylegen_merge_loras=True)
    with patch("stylegen.worker.Engine") as engine:
        make_parts(settings)
    assert engine.call_args.kwargs["merge_loras"] is True


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
