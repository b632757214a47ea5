"""The job's schema says what the worker accepts: each field, on both sides of each bound."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from stylegen.fields import MAX_WEIGHTED_LENGTH, SCHEDULERS
from stylegen.job import (
    ExtraLora,
    GenerationJob,
    InvalidMessage,
    SignatureOptions,
    check_job,
    job_digest,
    parse_job,
)

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs/job.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
LORA = "s3://models/a.safetensors"
FIELDS: dict[str, Any] = {
    "generation_id": 1,
    "style_id": 1,
    "lora_model_url": LORA,
    "prompt_tags": ["rose"],
    "artist_name": "Zoë",
    "webhook_url": "https://a.example",
}
BAD_TEXTS = ["a\nb", "a\n", "\x00", "\x7f", "\x9f", 1, True, ["a"], {}]
BAD_IDS = [-1, 2**63, 1.5, True, "", "a b", "a\n", "x" * 129, "é", [1], {}, None]
BAD_OBJECTS = ["", "a.png", "s3://models", "s3://models/", "s3:///a", "s3://UP/a", "s3://ab/a"]
BAD_OBJECTS += ["s3://k:s@models/a", f"{LORA}?v=1", f"{LORA}#a", f"{LORA}\n", "https://a.example/a"]
BAD_OBJECTS += ["file:", "S3://models/a", "s3://models/" + "a" * 2037, 7, [LORA]]
GOOD_OBJECTS = [LORA, "file:///tmp/a", "s3://models/그림 1.png", "s3://models/" + "a" * 2036]
BAD_WHOLES = [1.5, "1", True, [1], {}]
CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "generation_id": ([1, 7.0, 2**63 - 1, "a", "A_-9" * 32], [0, -0.0, *BAD_IDS]),
    "style_id": ([0, 1, 7.0, 2**63 - 1, "a", "A_-9" * 32], BAD_IDS),
    "lora_model_url": (GOOD_OBJECTS, [None, *BAD_OBJECTS]),
    "prompt_tags": (
        [["a"], ["a"] * 256, ["x" * 4096], ["🌹" * 4096], ["a b", "한글"]],
        [None, [], ["a"] * 257, ["x" * 4097], [""], [" "], ["\u3000"], [None], "a", {}, [["a"]]]
        + [[text] for text in BAD_TEXTS],
    ),
    "artist_name": (["a", "김하늘", "x" * 200, "🌹" * 200], [None, "", " ", "x" * 201, *BAD_TEXTS]),
    "webhook_url": (
        ["http://a", "HTTPS://A.example:8443/a_b/~c/", "http://[::1]:1", "http://a/" + "x" * 2039],
        [None, "", "a.example", "ftp://a", "http:/a", "http://", "http://a b", "http://u:p@a"]
        + ["http://a?b=c", "http://a#b", "http://a\\b", "http://a:123456", "http://a\n", 7]
        + ["http://é.example", "http://a/%2e", "http://a/" + "x" * 2040],
    ),
    "aspect_ratio": (["1:1", "16:9", "", "x" * 4096, None], ["x" * 4097, *BAD_TEXTS]),
    "seed": ([0, 42.0, 2.0**53, 2**63 - 1, None], [-1, 2**63, 2.0**63, 1e300, *BAD_WHOLES]),
    "negative_prompt": (["", " ", "x" * 4096, None], ["x" * 4097, *BAD_TEXTS]),
    "num_inference_steps": ([1, 1.0, 500, None], [0, 501, 501.0, 10**400, *BAD_WHOLES]),
    "guidance_scale": ([0, -0.0, 7, 7.5, 50, 50.0, None], [-0.1, 50.1, 1000, 10**400, "7", True]),
    "scheduler": ([*SCHEDULERS, None], ["plms", "Euler", "", 1, ["euler"]]),
    "lora_scale": ([-4, -4.0, 0, 4, None], [-4.1, 4.1, 5, -(10**400), "1", False]),
    "extra_loras": (
        [[], [{"url": LORA}] * 4, [{"url": LORA, "more": None}], None],
        [[{"url": LORA}] * 5, [{}], [{"scale": 1}], [None], [LORA], {"url": LORA}, "a"],
    ),
    "extra_loras.url": (GOOD_OBJECTS, [None, *BAD_OBJECTS]),
    "extra_loras.scale": ([-4, 4.0, 0, None], [-4.1, 4.1, "1", True]),
    "prompt_syntax": (["compel", None], ["", "a1111", 1, ["compel"]]),
    "speed_profile": (["guidance_interval", "ays", None], ["", "fastest", 2]),
    "signature": ([{}, {"more": 1}, None], ["big", [], 1, True]),
    "signature.position": (["bottom-right", "top-left", None], ["middle", "", 1]),
    "signature.opacity": ([0, 128.0, 255, None], [-1, 256, 256.0, *BAD_WHOLES]),
    "signature.image_url": ([*GOOD_OBJECTS, None], BAD_OBJECTS),
}
"""Of each field, values that are taken and values that are not."""
BEYOND = {
    "a floating-point number beyond 2^53": {"seed": 2.0**60},
    "half a character": {"artist_name": "\ud800"},
    "weighted texts that are long": {
        "prompt_syntax": "compel",
        "prompt_tags": ["x" * MAX_WEIGHTED_LENGTH, "x"],
    },
    "more steps than a scheduler takes": {"scheduler": "lcm", "num_inference_steps": 51},
    "a profile that a scheduler does not take": {"scheduler": "pndm", "speed_profile": "ays"},
    "weighted texts that are deep": {"prompt_syntax": "compel", "negative_prompt": "(" * 9},
}
"""What the schema can't say; docs/messages.md lists them."""


def with_value(name: str, value: Any) -> dict[str, Any]:
    """A good message but for one field, which may be inside another."""
    outer, _, inner = name.partition(".")
    if outer == "extra_loras" and inner:
        return FIELDS | {outer: [{"url": LORA} | {inner: value}]}
    return FIELDS | {outer: {inner: value} if inner else value}


def is_job(fields: dict[str, Any]) -> bool:
    """Whether the worker's model takes it."""
    try:
        check_job(fields)
    except InvalidMessage:
        return False
    return True


def test_each_field_has_its_cases() -> None:
    """None is forgotten when a job learns a new one."""
    names = set(GenerationJob.model_fields)
    names |= {f"signature.{name}" for name in SignatureOptions.model_fields}
    names |= {f"extra_loras.{name}" for name in ExtraLora.model_fields}
    assert set(CASES) == names


@pytest.mark.parametrize("name", CASES)
def test_both_sides_of_each_bound(name: str) -> None:
    """The model and the schema say the same, and what the table says."""
    for is_good, values in zip((True, False), CASES[name], strict=True):
        for value in values:
            fields = with_value(name, value)
            assert (is_job(fields), VALIDATOR.is_valid(fields)) == (is_good, is_good), ascii(value)


def bounds(schema: Any) -> set[tuple[str, Any]]:
    """Each keyword of the schema that bounds something, with its bound."""
    if isinstance(schema, list):
        return set().union(*map(bounds, schema))
    if not isinstance(schema, dict):
        return set()
    parts = {name: part for name, part in schema.items() if name != "default"}
    here = {(name, part) for name, part in parts.items() if isinstance(part, (int, float))}
    return here.union(*map(bounds, parts.values()))


def test_the_schema_has_words_that_validators_know() -> None:
    """A keyword that is none, such as `ge`, bounds nothing."""
    VALIDATOR.check_schema(SCHEMA)
    known = {"minimum", "maximum", "exclusiveMinimum"}
    known |= {"minLength", "maxLength", "minItems", "maxItems"}
    assert {name for name, _ in bounds(SCHEMA)} == known


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(-(2.0**53), 2.0**53)
    | st.text(max_size=8)
    | st.sampled_from([value for cases in CASES.values() for side in cases for value in side]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["url", "scale", "opacity", "x"]), inner, max_size=3),
    max_leaves=4,
)


@examples(300)
@given(name=st.sampled_from(sorted(CASES)), value=VALUES)
def test_any_value_is_taken_by_both_or_neither(name: str, value: Any) -> None:
    """Whatever JSON can hold, in whichever field."""
    fields = with_value(name, value)
    assert is_job(fields) == VALIDATOR.is_valid(fields)


@pytest.mark.parametrize("name", BEYOND)
def test_what_the_schema_cannot_say(name: str) -> None:
    """The worker refuses it all the same."""
    fields = FIELDS | BEYOND[name]
    assert VALIDATOR.is_valid(fields) and not is_job(fields)


def test_one_number_has_one_meaning() -> None:
    """However it is written: the same job, by its digest, too."""
    whole = {"generation_id": 7, "seed": 42, "num_inference_steps": 30, "guidance_scale": 7}
    fractions = {name: float(value) for name, value in whole.items()}
    jobs = [parse_job(json.dumps(FIELDS | fields).encode()) for fields in (whole, fractions)]
    assert jobs[0] == jobs[1] and len({job_digest(job) for job in jobs}) == 1
    assert [type(jobs[1].generation_id), type(jobs[1].seed)] == [int, int]


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("generation_id", [1], "generation_id"),
        ("prompt_tags", ["a", ""], "prompt_tags.1"),
        ("extra_loras.url", "http://a.example/a", "extra_loras.0.url"),
        ("extra_loras.url", None, "extra_loras.0.url"),
        ("signature.opacity", 256, "signature.opacity"),
        ("webhook_url", "ftp://a.example", "webhook_url"),
    ],
)
def test_the_field_that_is_wrong_is_named(name: str, value: Any, named: str) -> None:
    """With its place in what holds it; without its value, and without pydantic's words."""
    with pytest.raises(InvalidMessage) as refusal:
        check_job(with_value(name, value))
    assert str(refusal.value).startswith(f"{named}: ")
    assert "Value error" not in str(refusal.value) and "; " not in str(refusal.value)
