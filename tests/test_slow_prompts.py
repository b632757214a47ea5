"""A prompt that takes long takes it from its own job: its neighbours go on, and it is named."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compel.prompt_parser import PromptParser
from waiting import wait_until

from stylegen.job import Canceled, DeviceLost, GenerationJob, StylegenError, check_job
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine, encode_long_prompt
from stylegen.pipeline.prompt import encode_pieces
from stylegen.pipeline.task import Task
from stylegen.pocket import packaged
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, handle_generation_task
from stylegen.worker.running import RunningJobs

LIMIT = 0.6
"""Seconds that a job may take here; less than any of the slow prompts needs."""
LORAS = [packaged() / f"pocket-loras/{name}.safetensors" for name in ("mosaic", "neon")]
FIELDS: dict[str, Any] = {
    "generation_id": "neighbour",
    "style_id": 10,
    "lora_model_url": "s3://models/style_10.safetensors",
    "prompt_tags": ["red", "heart"],
    "artist_name": "Zoë",
    "webhook_url": "https://a.example",
    "num_inference_steps": 24,
}
WEIGHTED = {"prompt_tags": ["(red)1.4 heart", "star-"], "prompt_syntax": "compel"}
MANY_PIECES = {"prompt_tags": ["a," * 2040] * 3}
SLOW_GRAMMAR = {"prompt_tags": [("a- b " * 200)[:510]], "prompt_syntax": "compel"}


def ordered(**changes: Any) -> GenerationJob:
    """A job of the neighbour's kind."""
    return check_job(FIELDS | changes)


@pytest.fixture(scope="module", name="running_jobs")
def _running_jobs() -> RunningJobs:
    return RunningJobs(LIMIT)


@pytest.fixture(scope="module", name="begun")
def _begun() -> threading.Event:
    """Set when a long prompt begins to be encoded."""
    return threading.Event()


@pytest.fixture(scope="module", name="watched")
def _watched(pocket: Path, running_jobs: RunningJobs, begun: threading.Event) -> Iterator[Engine]:
    """An engine as a worker makes it: running jobs hear of their prompts."""

    @contextmanager
    def on_prompt(job: GenerationJob) -> Iterator[Callable[[], object]]:
        with running_jobs.encoding(job) as check:
            begun.set()
            yield check

    engine = Engine(load_pipeline(str(pocket / "pocket"), device="cpu"), on_prompt=on_prompt)
    yield engine
    engine.close()


@pytest.fixture(scope="module", name="alone")
def _alone(watched: Engine) -> bytes:
    """The neighbour's picture."""
    return watched.draw(ordered(), LORAS[0]).tobytes()


@pytest.fixture(name="slow_job")
def _slow_job(
    parts: Parts, order: dict[str, Any], watched: Engine, running_jobs: RunningJobs
) -> Iterator[Callable[..., "Future[Any]"]]:
    """Does a job with these fields by the worker's flow, on a thread of its own."""
    parts = replace(parts, draw=watched.draw, running_jobs=running_jobs)
    with ThreadPoolExecutor() as pool:
        yield lambda **changes: pool.submit(handle_generation_task, order | changes, parts)


@pytest.mark.parametrize("fields", [SLOW_GRAMMAR, MANY_PIECES], ids=["grammar", "pieces"])
def test_a_slow_prompt_ends_by_its_own_limit(
    watched: Engine,
    begun: threading.Event,
    alone: bytes,
    backend: WebhookReceiver,
    slow_job: Callable[..., "Future[Any]"],
    fields: dict[str, Any],
) -> None:
    """Its neighbour takes its steps meanwhile, and its picture is the one that it is alone."""
    slow: list[Future[Any]] = []
    meanwhile: list[int] = []

    def on_step(step: int) -> None:
        if step == 1:
            slow.append(slow_job(generation_id="slow", **fields))
            assert begun.wait(60)
        elif step and not slow[0].done():
            meanwhile.append(step)

    begun.clear()
    picture = watched.draw(ordered(), LORAS[0], on_step=on_step)
    assert slow[0].result(60).error_code == "TIMEOUT"
    (failed,) = [hook for hook in backend.received if hook.event == "failed"]
    assert failed.body["generation_id"] == "slow"
    assert failed.body["error_code"] == "TIMEOUT"
    assert failed.body["error_message"] == "the prompt took longer than 0.6 s"
    assert len(meanwhile) > 1
    assert picture.tobytes() == alone


def test_a_whole_message_of_words_is_cut_in_linear_time(watched: Engine) -> None:
    """Without the text encoder's time; it took minutes."""

    def text_encoder(ids: torch.Tensor, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(last_hidden_state=torch.zeros(*ids.shape, 1))

    text_encoder.dtype = torch.float32  # type: ignore[attr-defined]
    pipeline = SimpleNamespace(tokenizer=watched.pipeline.tokenizer, text_encoder=text_encoder)
    job, began = ordered(prompt_tags=["a," * 2048] * 25), time.process_time()
    assert encode_pieces(pipeline, job, torch.device("cpu")).shape[1] > 100_000
    assert time.process_time() - began < 5


def test_a_prompt_that_hangs_is_named_and_nobody_else(
    watched: Engine,
    running_jobs: RunningJobs,
    alone: bytes,
    slow_job: Callable[..., "Future[Any]"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A parser that does not look at the clock is overdue alone; another picture is drawn."""
    end, parse = threading.Event(), PromptParser.parse_conjunction

    def parse_at_last(parser: PromptParser, text: str) -> Any:
        assert end.wait(60)
        return parse(parser, text)

    monkeypatch.setattr(PromptParser, "parse_conjunction", parse_at_last)
    slow = slow_job(generation_id="slow", **WEIGHTED)
    named = set[int | str]()
    with running_jobs.job("neighbour") as neighbour:

        def on_step(_: int) -> None:
            neighbour.moved()
            named.update(running_jobs.overdue())

        picture = watched.draw(ordered(), LORAS[0], on_step=on_step)
    wait_until(running_jobs.overdue)
    assert running_jobs.overdue() == ["slow"] and named <= {"slow"}
    assert picture.tobytes() == alone
    end.set()
    assert slow.result(60).error_code == "TIMEOUT"
    assert running_jobs.overdue() == []


def test_a_job_is_canceled_while_its_prompt_is_encoded(
    watched: Engine, running_jobs: RunningJobs
) -> None:
    """At the next piece."""
    job = ordered(**MANY_PIECES)
    with running_jobs.job(job.generation_id):
        running_jobs.cancel(job.generation_id)
        with pytest.raises(Canceled):
            watched.draw(job, LORAS[0])


def test_pieces_keep_their_own_loras(watched: Engine) -> None:
    """Two artists' prompts, taken apart at a time, are encoded as each in one turn."""
    jobs = [ordered(prompt_tags=["red heart, "] * 80)] * 2 + [ordered(**WEIGHTED)] * 2

    def make_tasks() -> list[Task]:
        adapters = [watched.adapters.get(lora) for lora in LORAS * 2]
        return [Task(job, adapter) for job, adapter in zip(jobs, adapters, strict=True)]

    by_pieces, at_once = make_tasks(), make_tasks()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(partial(encode_long_prompt, watched.loop), by_pieces))
    encode = watched.loop.encode_decode.text.encode
    with torch.no_grad():
        expected = [encode(task.job, task.adapter) for task in at_once]
    for task, prompt_embeds in zip(by_pieces, expected, strict=True):
        assert torch.equal(task.prompt_embeds, prompt_embeds)
    assert not torch.equal(expected[2], expected[3])


def test_who_waits_for_the_text_encoder_hears_of_the_end(pocket: Path) -> None:
    """A closed engine encodes nothing; a dead thread leaves nobody waiting."""
    job = ordered(**WEIGHTED)
    engine = Engine(load_pipeline(str(pocket / "pocket"), device="cpu"))
    engine.loop.active.batch.prepare_thread = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(DeviceLost):
        engine.draw(job, LORAS[0])
    engine.close()
    engine = Engine(engine.pipeline)
    engine.close()
    with pytest.raises(StylegenError, match="closed"):
        engine.draw(job, LORAS[0])
