"""`--check` asks what a job will need; a no says what is wrong, and which variable to change."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rabbit import Broker

from stylegen.settings import Settings
from stylegen.worker import check_machine


@pytest.fixture(name="ask")
def _ask(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`check_machine` with a folder, a model without a safety checker, and these changes."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "x"}', "ascii")

    def check(**changes: Any) -> dict[str, str]:
        usual = {
            "internal_api_token": "t",
            "webhook_allowed_origins": "https://api.example.com",
            "rabbitmq_url": "amqp://guest:guest@127.0.0.1:1/",
            "stylegen_storage_folder": tmp_path / "bucket",
            "stylegen_cache_folder": tmp_path / "cache",
            "stylegen_cache_bytes": 1000,
            "stylegen_model": str(tmp_path / "model"),
            "stylegen_device": "cpu",
        }
        return check_machine(Settings(**usual | changes))

    return check


def test_each_no_names_a_variable(
    ask: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words first, and never an exception's bare name."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("s3cr3t")

    for name in ("choose_font", "covered_scripts", "make_store", "make_labelling", "connect"):
        monkeypatch.setattr(f"stylegen.worker.check.{name}", fail)
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.load_config", fail)
    answers = ask(stylegen_cache_folder="/dev/null/x")
    refused = {name: answer for name, answer in answers.items() if answer.startswith("no: ")}
    assert set(answers) - set(refused) == {"device", "webhooks"}
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


def test_rights_of_the_broker(ask: Callable[..., dict[str, str]], rabbit: Broker) -> None:
    """Each is told apart; what is asked leaves no message."""
    for configure, write, said in (
        ("^jobs.*", "^jobs.*", "no: the account may not publish to the default exchange"),
        ("^$", ".*", "no: the account may not declare the exchange jobs.control"),
        (".*", ".*", "reachable"),
    ):
        url = rabbit.add_user(configure, write)
        answer = ask(rabbitmq_url=url, stylegen_queue="jobs")["broker"]
        assert answer.startswith(said)


def test_a_broker_that_refuses(ask: Callable[..., dict[str, str]], rabbit: Broker) -> None:
    """A wrong password, a wrong virtual host and no broker are three things."""
    wrong = rabbit.url.replace("guest:guest", "guest:wr0ng")
    assert "refuses the account" in ask(rabbitmq_url=wrong)["broker"]
    elsewhere = rabbit.url.rpartition("/")[0] + "/none"
    assert "refuses the virtual host" in ask(rabbitmq_url=elsewhere)["broker"]
    assert "can't be reached" in ask()["broker"]
