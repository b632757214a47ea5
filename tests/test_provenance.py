"""The label's promises: written, read back, escaped, and nothing else gets out."""

from importlib.metadata import version
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from stylegen.signature.label import Label, encode_labelled, label_xmp
from stylegen.signature.provenance import read_provenance

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOFTWARE = f"stylegen {version('stylegen')}"
LABEL = Label(
    "gen_7", "김하늘", "stable-diffusion-v1-5", "0f" * 32, copyright_notice="© 2026 김하늘"
)
PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def test_round_trip(tmp_path):
    """Everything written is read, from bytes and from a file."""
    data = encode_labelled(PICTURE, LABEL)
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    assert read_provenance(path) == read_provenance(str(path)) == read_provenance(data)
    assert read_provenance(data) == {
        "artist": "김하늘",
        "creator": "김하늘",
        "software": SOFTWARE,
        "description": "AI-generated image in the style of 김하늘",
        "copyright": "© 2026 김하늘",
        "rights": "© 2026 김하늘",
        "digital_source_type": GENERATED,
        "generation_id": "gen_7",
        "model": "stable-diffusion-v1-5",
        "lora_sha256": "0f" * 32,
    }


def test_a_packet_padded_with_zeros_is_read():
    """Some writers end the packet by a zero, which is no XML."""
    data = BytesIO()
    PICTURE.save(data, "JPEG", xmp=label_xmp(LABEL) + b"\0")
    assert read_provenance(data.getvalue())["creator"] == "김하늘"


def test_optional_facts_are_left_out():
    """No digest, no notice: no such keys, and a number is an id too."""
    found = read_provenance(encode_labelled(PICTURE, Label(500, "Zoë", "pocket")))
    assert found["generation_id"] == "500"
    assert not {"lora_sha256", "copyright"} & set(found)


@examples(60)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=200))
def test_any_artist_round_trips(name):
    """Any script, any XML syntax."""
    found = read_provenance(encode_labelled(PICTURE, Label(1, name, name)))
    assert (found["artist"], found["creator"], found["model"]) == (name, name, name)


@pytest.mark.parametrize("name", ["a\x01b", "a\ufffeb", "a\x0bb"])
def test_characters_that_xml_forbids_are_dropped(name):
    """A bad name costs its bad characters, not the label."""
    found = read_provenance(encode_labelled(PICTURE, Label(1, name, "pocket")))
    assert (found["creator"], found["digital_source_type"]) == ("ab", GENERATED)


def test_packet_is_well_formed_and_of_standard_names():
    """Another parser finds the source type under the IPTC's namespace."""
    root = ElementTree.fromstring(label_xmp(Label(1, "</rdf:li><evil>&", "m")).decode())
    names = {element.tag for element in root.iter()}
    assert "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType" in names
    assert not any("evil" in name for name in names)


def test_jpeg_is_baseline_of_full_colour():
    """JPEG, 4:4:4, the tables of quality 95, same bytes each time."""
    data = encode_labelled(PICTURE, LABEL)
    assert data == encode_labelled(PICTURE, LABEL)
    same = BytesIO()
    PICTURE.save(same, "JPEG", quality=95)
    with Image.open(BytesIO(data)) as image, Image.open(same) as expected:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", PICTURE.size)
        assert JpegImagePlugin.get_sampling(image) == 0
        assert image.quantization == expected.quantization
        difference = np.abs(np.asarray(image, float) - np.asarray(PICTURE))
    assert difference.max() <= 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_any_mode_is_encoded(mode):
    """JPEG knows no transparency; the label is written all the same."""
    assert read_provenance(encode_labelled(PICTURE.convert(mode), LABEL))["artist"] == "김하늘"


def test_a_pictures_own_metadata_stays_in():
    """Prompts in a comment, in EXIF or in XMP do not get out, and the picture keeps them."""
    secret = b"a secret prompt"
    picture = PICTURE.copy()
    exif = Image.Exif()
    exif[0x9286] = secret
    picture.info = {
        "comment": secret,
        "exif": exif.tobytes(),
        "xmp": secret,
        "parameters": "secret",
    }
    assert b"secret" not in encode_labelled(picture, LABEL)
    assert picture.info["comment"] == secret


@pytest.mark.parametrize(
    "packet",
    [b"not xml", b"\xff\xfe", b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', b"", b"<x/>"],
)
def test_foreign_packets_are_no_label(packet):
    """Whatever another program wrote, reading does not fail."""
    buffer = BytesIO()
    PICTURE.save(buffer, "JPEG", xmp=packet)
    assert read_provenance(buffer.getvalue()) == {}


def test_no_picture_is_an_error():
    """What Pillow can't open has no label to read."""
    with pytest.raises(OSError):
        read_provenance(b"no picture")
