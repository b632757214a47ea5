"""Messages and prompts that are made to hurt: each ends in its one clear error, and fast."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegen.fields import MAX_WEIGHTED_DEPTH, MAX_WEIGHTED_LENGTH, check_weighted
from stylegen.job import GenerationJob, InvalidMessage, check_job, parse_job
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.prompt import encode_prompt

FIELDS: dict[str, Any] = {
    "generation_id": 1,
    "style_id": 1,
    "lora_model_url": "s3://models/a.safetensors",
    "prompt_tags": ["rose"],
    "artist_name": "Zoë",
    "webhook_url": "https://a.example",
}
WEIGHTED = FIELDS | {"prompt_syntax": "compel"}
SECONDS = 2.0
"""Of CPU for a text that takes 0.6 s on a machine that does nothing else."""

# Weighted prompts


def nested(depth: int) -> str:
    """Brackets in brackets."""
    return "(" * depth + "rose" + ")1.1" * depth


def filled(unit: str) -> str:
    """The longest text that repeats `unit`."""
    return (unit * MAX_WEIGHTED_LENGTH)[:MAX_WEIGHTED_LENGTH]


@pytest.mark.parametrize("field", ["prompt_tags", "negative_prompt"])
@pytest.mark.parametrize(
    "text, bound",
    [
        (nested(MAX_WEIGHTED_DEPTH + 1), "8 deep"),
        ("(" * 400, "8 deep"),
        ("a (" * 100, "8 deep"),
        ("x" * (MAX_WEIGHTED_LENGTH + 1), "512 characters"),
    ],
)
def test_a_prompt_that_parses_slowly_is_refused(field: str, text: str, bound: str) -> None:
    """The error names the field and the bound, and quotes nothing."""
    value = [text] if field == "prompt_tags" else text
    with pytest.raises(InvalidMessage, match=f"{field} is .*{bound}") as refusal:
        check_job(WEIGHTED | {field: value})
    assert text[:20] not in str(refusal.value)
    check_job(FIELDS | {field: value})  # literal text is not parsed


def test_the_bounds_are_of_the_joined_tags() -> None:
    """Many short tags are one text."""
    with pytest.raises(InvalidMessage, match="512 characters"):
        check_job(WEIGHTED | {"prompt_tags": ["rose"] * 103})
    with pytest.raises(InvalidMessage, match="8 deep"):
        check_job(WEIGHTED | {"prompt_tags": ["("] * 9})
    check_job(WEIGHTED | {"prompt_tags": [r"\(rose"] * 64, "negative_prompt": nested(8)})


def encoded(engine: Engine, text: str) -> str:
    """What becomes of a prompt: ``ok``, or its error; fails if it takes too long."""
    try:
        job = check_job(WEIGHTED | {"prompt_tags": [text]})
    except InvalidMessage:
        return "refused"
    began = time.process_time()
    try:
        encode_prompt(engine.pipeline, job)
    except InvalidMessage as error:
        assert error.__suppress_context__ and text not in str(error)
        return str(error)
    finally:
        assert time.process_time() - began < SECONDS, ascii(text)
    return "ok"


@pytest.mark.parametrize(
    "text",
    [
        nested(MAX_WEIGHTED_DEPTH),
        "(" * MAX_WEIGHTED_DEPTH + "rose",
        *map(filled, ("()", "((a)) ", "(a)1.2 ", "[", '"', '"a"+ ', '("a", "b").and() ')),
        *map(filled, ("+", "-", "a+", ",", ".", "\\", '\\"', "a.swap(b) ", "withLora(a,1) ", "1")),
        "(" * 7 + filled("a b ")[:400] + ")" * 7,
        '"' + "(" * 7 + filled("a b ")[:400] + ")" * 7 + '"',
        "(" + ", ".join(['"a"'] * 90) + ").blend(" + ",".join(["1"] * 20) + ")",
    ],
)
def test_every_accepted_prompt_parses_fast(engine: Engine, text: str) -> None:
    """Of the greatest length and depth, in every form that compel knows."""
    encoded(engine, text)


ATOMS = [
    "(",
    ")",
    '"',
    "\\",
    "+",
    "-",
    ",",
    ".",
    "[",
    "a",
    "1.1",
    ".and()",
    ".blend(1)",
    ".swap(",
    " ",
]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(unit=st.lists(st.sampled_from(ATOMS), min_size=1, max_size=6).map("".join))
def test_every_repetition_parses_fast(engine: Engine, unit: str) -> None:
    """Whatever is repeated up to the greatest length: an error is the message's."""
    encoded(engine, filled(unit))


@pytest.mark.parametrize(
    "text", ['("WORD", "b").blend(1)', '("WORD", "b").and(1,2,3)', "(WORD).attend(x)", "a.swap("]
)
def test_what_compel_refuses_is_the_messages_fault(engine: Engine, text: str) -> None:
    """Its own texts quote the prompt; ours don't."""
    assert "WORD" not in encoded(engine, text)


def test_blend_without_its_weights_quotes_no_prompt(engine: Engine) -> None:
    """The one that printed the customer's words."""
    job = check_job(WEIGHTED | {"prompt_tags": ['("WORD", "b").blend(1)']})
    with pytest.raises(InvalidMessage, match="prompt_syntax") as refusal:
        encode_prompt(engine.pipeline, job)
    assert refusal.value.__suppress_context__ and "WORD" not in str(refusal.value)


# Messages


@pytest.mark.parametrize("ratio", ["1" * 10_000_000, "\ud800", "1:1\n", "\x00"])
def test_an_aspect_ratio_is_a_short_text(ratio: str) -> None:
    """It goes into a log, a label and a digest."""
    with pytest.raises(InvalidMessage, match="^aspect_ratio: ") as refusal:
        check_job(FIELDS | {"aspect_ratio": ratio})
    assert len(str(refusal.value)) < 200
    assert check_job(FIELDS | {"aspect_ratio": "16:9"}).resolution == (512, 512)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["compel", "(" * 9, "\ud800", "1:2", 10**400]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["url", "position", "x"]), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(GenerationJob.model_fields)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(changes=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_fields_are_a_job_or_one_error(changes: dict[str, Any]) -> None:
    """Whatever a field holds."""
    body = json.dumps(FIELDS | changes).encode()
    try:
        job = parse_job(body)
    except InvalidMessage as error:
        assert len(str(error)) < 4000
    else:
        job.model_dump_json()
        if job.prompt_syntax:
            check_weighted(job.prompt)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(start=st.integers(0, 200), length=st.integers(0, 20), patch=st.binary(max_size=20))
def test_any_bytes_are_a_job_or_one_error(start: int, length: int, patch: bytes) -> None:
    """A good message with a few of its bytes exchanged."""
    body = json.dumps(FIELDS).encode()
    try:
        parse_job(body[:start] + patch + body[start + length :])
    except InvalidMessage:
        pass
