"""The label as others read it: exiftool, a public parser of such pictures, C2PA's own reader."""

import hashlib
import io
import json
import subprocess
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import c2pa
import pytest
from certificates import write_chain
from painter import ORDER, painting_parts
from PIL import Image
from sd_parsers import ParserManager

from stylegen.job import GenerationJob, InvalidMessage, check_job
from stylegen.signature.c2pa import ContentCredentials, c2pa_manifest
from stylegen.signature.label import Label, encode_labelled, infotext, srgb_profile
from stylegen.signature.provenance import read_job, read_provenance
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Labelling, Parts, handle_generation_task

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PICTURE = Image.effect_noise((64, 96), 80).convert("RGB")
JOB: dict[str, Any] = {
    "generation_id": 7,
    "style_id": 10,
    "lora_model_url": "s3://models/style_10.safetensors",
    "prompt_tags": ["red", "heart", "white background"],
    "negative_prompt": "blurry",
    "artist_name": "김하늘",
    "webhook_url": "https://api.example.com",
    "seed": 0,
    "scheduler": "euler",
}


def full_label(**changes: Any) -> Label:
    """A label that holds its job."""
    job = check_job(JOB | changes)
    digests = {"lora_sha256": "0f" * 32, "model_sha256": "a1" * 32}
    return Label(job.generation_id, job.artist_name, "pocket", job=job, **digests)


def test_infotext_to_the_letter() -> None:
    """Every parameter has its value and none is empty; what is not known is left out."""
    label = full_label()
    asked = "red heart white background <lora:style_10:1.0>"
    shape = "Steps: 50, Sampler: Euler, CFG scale: 7.5, Seed: 0, Size: 512x512"
    assert infotext(label).splitlines() == [
        asked,
        "Negative prompt: blurry",
        f"{shape}, Model hash: a1a1a1a1a1, Model: pocket, "
        f'Lora hashes: "style_10: 0f0f0f0f0f", Version: {label.software}',
    ]
    job = check_job(JOB | {"negative_prompt": "", "scheduler": "dpmsolver++"})
    bare = infotext(Label(7, "Zoë", "pocket", job=job))
    shape = shape.replace("Euler", "DPM++ 2M")
    assert bare.splitlines() == [asked, f"{shape}, Model: pocket, Version: {label.software}"]
    assert infotext(Label(7, "Zoë", "pocket")) == ""
    for name, sampler in {"dpmsolver++_karras": "DPM++ 2M Karras", "euler_a": "Euler a"}.items():
        assert f"Sampler: {sampler}, CFG" in infotext(full_label(scheduler=name))


def exiftool(path: Path) -> dict[str, Any]:
    """What exiftool reads, with its group names."""
    run = subprocess.run(["exiftool", "-json", "-G1", str(path)], capture_output=True, check=True)
    return dict(json.loads(run.stdout)[0])


@pytest.mark.parametrize("artist", ["김하늘", "Zoë", "山田太郎", "أمل", '<&> "Q"'])
def test_exiftool_shows_the_label(tmp_path: Path, artist: str) -> None:
    """EXIF, XMP and the profile, as the most used reader sees them."""
    path = tmp_path / "picture.jpg"
    notice = f"Style licensed from {artist}"
    label = Label(7, artist, "pocket", lora_sha256="0f" * 32, copyright_notice=notice)
    path.write_bytes(encode_labelled(PICTURE, label))
    seen = exiftool(path)
    assert seen["IFD0:Artist"] == seen["XMP-dc:Creator"] == artist
    assert seen["IFD0:Copyright"] == seen["XMP-dc:Rights"] == notice
    assert seen["XMP-iptcExt:DigitalSourceType"] == GENERATED
    assert seen["IFD0:Software"].startswith("stylegen ")
    assert str(seen["XMP-dc:Identifier"]) == "7"
    assert seen["ICC_Profile:ProfileDescription"].startswith("sRGB")
    assert "heart" not in json.dumps(seen)


def test_exiftool_shows_the_full_label(tmp_path: Path) -> None:
    """The infotext is a UserComment that exiftool decodes by itself."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_labelled(PICTURE, full_label()))
    comment = exiftool(path)["ExifIFD:UserComment"]
    assert comment.startswith("red heart white background <lora:style_10:1.0>")
    assert "Seed: 0, Size: 512x512" in comment


def test_digests_and_job_are_properties_of_our_own_namespace(tmp_path: Path) -> None:
    """Named as docs and readers know them; without a job there is no recipe."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_labelled(PICTURE, full_label()))
    seen = {name.partition(":")[2]: value for name, value in exiftool(path).items()}
    assert (seen["ModelSha256"], seen["LoraSha256"]) == ("a1" * 32, "0f" * 32)
    assert json.loads(seen["Job"])["prompt_tags"] == JOB["prompt_tags"]
    found = read_provenance(path)
    assert (found["model_sha256"], found["lora_sha256"]) == ("a1" * 32, "0f" * 32)


def test_public_parser_reads_the_recipe(tmp_path: Path) -> None:
    """sd-parsers, made for pictures of web UIs, finds prompt, sampler and parameters."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_labelled(PICTURE, full_label()))
    info = ParserManager().parse(path)
    assert info is not None
    (sampler,) = info.samplers
    assert sampler.name == "Euler"
    assert sampler.parameters["seed"] == "0"
    assert (sampler.parameters["steps"], sampler.parameters["cfg_scale"]) == ("50", "7.5")
    assert "red heart white background" in info.full_prompt
    assert info.full_negative_prompt == "blurry"
    assert sampler.model is not None and sampler.model.name == "pocket"


def test_full_label_is_a_job_again() -> None:
    """Every field survives, but the webhook's address."""
    label = full_label(seed=2**63 - 1, aspect_ratio="1:2")
    fields = read_job(encode_labelled(PICTURE, label))
    assert "webhook_url" not in fields
    assert GenerationJob.model_validate(fields | {"webhook_url": JOB["webhook_url"]}) == label.job


def test_too_long_a_recipe_is_an_error() -> None:
    """A JPEG segment holds 64 kB; more is refused, not cut."""
    with pytest.raises(InvalidMessage):
        encode_labelled(PICTURE, full_label(prompt_tags=["heart" * 500] * 60))


HOSTILE = {
    "lone surrogate": "a\ud800b",
    "NUL": "a\0b",
    "from right to left": "a\u202eb\u202cc",
    "10 kB": "rose " * 2000,
    "4 kB": "각" * 4096,
    "XML": "<&>\"'&amp;&#0;",
    "end of CDATA": "a ]]> b",
    "entities": "<!-- --> <!DOCTYPE x [<!ENTITY y 'z'>]> &y;",
    "end of the packet": '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>',
    "no characters": "a\ufffeb\uffffc",
    "private and beyond": "\ue000\U000f0000 𝕏 🜁",
    "a template": "{properties} {0} %s ${x} \\u0000",
    "JSON": '"], "seed": 7, "x": ["',
    "lines": "a\u2028b\u2029c",
    "byte order mark": "\ufeffa",
    "many accents": "a" + "\u0301" * 100,
    "another recipe": "Negative prompt: b Steps: 1, Seed: 9",
}


@pytest.mark.parametrize(
    "tags, code", [(3, None), (20, "INVALID_MESSAGE"), (256, "INVALID_MESSAGE")]
)
def test_a_long_prompt_is_labelled_or_refused(
    backend: WebhookReceiver, tags: int, code: str | None
) -> None:
    """12 kB fit into a JPEG's segments; 80 kB and 1 MB, twice that in UTF-16, do not."""
    parts = replace(painting_parts(backend.url), labelling=Labelling("pocket", level="full"))
    order = ORDER | {"webhook_url": backend.url, "prompt_tags": ["<rose>" * 680] * tags}
    assert handle_generation_task(order, parts).error_code == code


@pytest.mark.parametrize("field", ["prompt_tags", "negative_prompt", "artist_name"])
def test_hostile_texts_are_refused_or_written(
    backend: WebhookReceiver, tmp_path: Path, field: str
) -> None:
    """With the full label: the message's error, or a picture whose label is read as written."""
    parts = replace(painting_parts(backend.url), labelling=Labelling("pocket", level="full"))
    root: Path = parts.store.root  # type: ignore[attr-defined]
    base, written = ORDER | {"webhook_url": backend.url, "num_inference_steps": 1}, {}
    for number, text in enumerate(HOSTILE.values(), 1):
        value = [text] if field == "prompt_tags" else text
        order = base | {"generation_id": number, field: value}
        outcome = handle_generation_task(json.dumps(order).encode(), parts)
        if outcome.error_code is None:
            written[root / f"generations/gen_{number}.jpg"] = order
        else:
            signature = {"SIGNATURE_UNRENDERABLE"} if field == "artist_name" else set()
            assert outcome.error_code in {"INVALID_MESSAGE"} | signature, ascii(text[:20])
    assert len(written) >= (5 if field == "artist_name" else 14)
    command = ["exiftool", "-json", "-G1", *map(str, written)]
    run = subprocess.run(command, capture_output=True, check=True)
    for (path, order), seen in zip(written.items(), json.loads(run.stdout), strict=True):
        assert not [name for name in seen if "Warning" in name or "Error" in name], seen
        assert read_job(path)[field] == json.loads(seen["XMP-stylegen:Job"])[field] == order[field]
        with Image.open(path) as image:
            assert ElementTree.fromstring(image.info["xmp"])
            image.load()


def test_profile_is_the_same_every_time() -> None:
    """No time stamp: equal pictures stay equal bytes."""
    first = srgb_profile()
    srgb_profile.cache_clear()
    assert srgb_profile() == first
    with Image.open(io.BytesIO(encode_labelled(PICTURE, full_label()))) as picture:
        assert picture.info["icc_profile"] == first


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed test chain and its key, as PEM files."""
    return write_chain(tmp_path_factory.mktemp("c2pa"))


def read_c2pa(data: bytes) -> tuple[str, dict[str, Any]]:
    """Validation state and active manifest, by the library's own reader."""
    with c2pa.Reader("image/jpeg", io.BytesIO(data)) as reader:
        report = json.loads(reader.json())
        return reader.get_validation_state(), report["manifests"][report["active_manifest"]]


def test_content_credentials(signer: tuple[Path, Path]) -> None:
    """The manifest says created, by a trained model, from which weights; and it is valid."""
    label = full_label()
    plain = encode_labelled(PICTURE, label)
    signed = ContentCredentials(*signer).sign(plain, label)
    state, manifest = read_c2pa(signed)
    assert state == "Valid"
    (agent,) = manifest["claim_generator_info"]
    assert f"{agent['name']} {agent['version']}" == label.software
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", GENERATED)
    titles = [ingredient["title"] for ingredient in manifest["ingredients"]]
    assert titles == [f"base model pocket sha256:{'a1' * 32}", f"LoRA sha256:{'0f' * 32}"]
    assert {each["relationship"] for each in manifest["ingredients"]} == {"inputTo"}
    assert "thumbnail" not in manifest, "a second, smaller picture in each file"
    assert read_provenance(signed) == read_provenance(plain)


def test_ingredients_without_a_digest_are_named() -> None:
    """A model in several files has no digest, and none is made up."""
    definition = c2pa_manifest(Label(7, "Zoë", "pocket"))
    titles = [ingredient["title"] for ingredient in definition["ingredients"]]
    assert titles == ["base model pocket", "LoRA"]


def test_a_changed_picture_is_found_out(signer: tuple[Path, Path]) -> None:
    """One flipped byte of the picture and the manifest is no longer valid."""
    label = full_label()
    signed = bytearray(ContentCredentials(*signer).sign(encode_labelled(PICTURE, label), label))
    signed[-40] ^= 1
    assert read_c2pa(bytes(signed))[0] == "Invalid"


def test_a_chain_ends_with_its_first_certificate(tmp_path: Path) -> None:
    """Here the root's, of thirty days; the leaf has sixty."""
    end = ContentCredentials(*write_chain(tmp_path, days=60)).end
    assert end < datetime.now(timezone.utc) + timedelta(days=30)


def test_wrong_certificates_are_refused(signer: tuple[Path, Path], tmp_path: Path) -> None:
    """A key in place of the chain, another's, or an end: when the worker starts, not at a job."""
    with pytest.raises(ValueError, match="no PEM chain"):
        ContentCredentials(signer[1], signer[0])
    ended = write_chain(tmp_path, days=0.5)
    with pytest.raises(ValueError, match="not the certificate's"):
        ContentCredentials(signer[0], ended[1])
    with pytest.raises(ValueError, match="has ended"):
        ContentCredentials(*ended)


def test_a_job_is_labelled_by_setting(
    parts: Parts, order: dict[str, Any], signer: tuple[Path, Path]
) -> None:
    """The flow passes digests, level and credentials on."""
    labelling = Labelling("pocket", "a1" * 32, "full", credentials=ContentCredentials(*signer))
    signing = Parts(parts.draw, parts.store, parts.allowed_origins, parts.token, None, labelling)
    outcome = handle_generation_task(order, signing)
    assert outcome.error_code is None
    data = (parts.store.root / "generations/gen_500.jpg").read_bytes()  # type: ignore[attr-defined]
    assert read_c2pa(data)[0] == "Valid"
    fields = read_job(data)
    assert fields["prompt_tags"] == order["prompt_tags"]
    found = read_provenance(data)
    lora = (parts.store.root / "models/style_10.safetensors").read_bytes()  # type: ignore
    assert found["lora_sha256"] == hashlib.sha256(lora).hexdigest()
    assert found["model_sha256"] == "a1" * 32
    assert found["rights"] == "Style licensed from 김하늘"
