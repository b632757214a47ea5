"""LoRA files: how strongly they speak, and whether what is saved of a file is still that file's."""

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lora_files import updates, write_diffusers, write_kohya
from PIL import Image
from safetensors.torch import load_file, save_file

from stylegen.job import LoraInvalid
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.adapter import Adapter, mix_adapters, read_adapter
from stylegen.pipeline.adapter_cache import AdapterCache
from stylegen.pipeline.lora_file import check_lora_file
from stylegen.playground.cells import find_cell, save_cell
from stylegen.playground.drawing import Picture
from stylegen.playground.library import LoraFile, folder_loras
from stylegen.playground.recipe import make_job
from stylegen.pocket import packaged
from stylegen.storage import FolderStore
from stylegen.storage.cache import LoraFiles

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from sd15 import make_unet  # noqa: E402  pylint: disable=wrong-import-position

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


# How strongly a layer speaks


@pytest.fixture(name="stock", scope="module")
def _stock(pocket: Path) -> Any:
    """The pocket model, for diffusers' own loader."""
    return load_pipeline(str(pocket / "pocket"), device="cpu")


def stock_updates(stock: Any, path: Path) -> dict[str, torch.Tensor]:
    """What diffusers adds to each layer's weights, as peft computes it."""
    stock.load_lora_weights(path.parent, weight_name=path.name, adapter_name="a")
    try:
        return {
            f"{part}.{name}": layer.get_delta_weight("a").detach().flatten(1)
            for part in ("unet", "text_encoder")
            for name, layer in getattr(stock, part).named_modules()
            if "a" in getattr(layer, "lora_A", {})
        }
    finally:
        stock.unload_lora_weights()


def own_updates(stock: Any, path: Path) -> dict[str, torch.Tensor]:
    """What we add."""
    pairs = read_adapter(path, stock).updates
    return {layer: up @ down.flatten(1) for layer, (down, up) in pairs.items()}


def assert_stock(stock: Any, path: Path) -> None:
    """The same layers get the same update."""
    expected, ours = stock_updates(stock, path), own_updates(stock, path)
    assert ours.keys() == expected.keys() and len(ours) > 4
    for layer, update in expected.items():
        assert torch.allclose(ours[layer], update, atol=1e-5), layer


def with_settings(path: Path, stock: Any, settings: dict[str, Any]) -> Path:
    """A file of rank 4 with peft's settings in its metadata, as diffusers writes them."""
    tensors = {}
    for name, (down, up) in updates(stock.unet, ("to_q", "to_v"), 4, seed=1).items():
        tensors[f"unet.{name}.lora_A.weight"] = down
        tensors[f"unet.{name}.lora_B.weight"] = up
    names = [name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name]
    settings = {"r": 4, "target_modules": [n.removeprefix("unet.") for n in names]} | settings
    text = json.dumps({f"unet.{name}": value for name, value in settings.items()})
    save_file(tensors, path, {"lora_adapter_metadata": text, "format": "pt"})
    return path


@pytest.mark.parametrize("alpha", [-4.0, -0.5, 16.0])
def test_any_alpha_is_stock_diffusers(stock: Any, tmp_path: Path, alpha: float) -> None:
    """A negative one turns the style around, none is lost in the root of a factor."""
    path = write_kohya(tmp_path / "kohya.safetensors", stock, 8, 1, alpha, text=True)
    assert_stock(stock, path)


@pytest.mark.parametrize(
    "pattern",
    [
        {},
        {"to_q": 2.0},
        {"attn1.to_q": 2.0},
        {"q": 2.0},
        {LAYER: 2.0},
        {f"^{LAYER}": 2.0},
        {"^attn1.to_q": 2.0},
        {"to_q": 2.0, "attn1.to_q": 3.0},
        {"attn1.to_q": 3.0, "to_q": 2.0},
        {"to_q": -2.0, "to_v": 0},
        {"to_q|to_v": 2.0},
        {"to_[qv]": 2.0},
        {r"attn1\.to_q": 2.0},
    ],
    ids=str,
)
def test_alphas_by_pattern_are_stock_diffusers(
    stock: Any, tmp_path: Path, pattern: dict[str, float]
) -> None:
    """By a layer's ending, or by its whole name after ``^``; of two that fit, the first counts."""
    settings = {"lora_alpha": 6.0, "alpha_pattern": pattern}
    assert_stock(stock, with_settings(tmp_path / "peft.safetensors", stock, settings))


def test_a_negative_alpha_of_the_metadata(stock: Any, tmp_path: Path) -> None:
    """With and without rank-stabilised scaling."""
    for number, settings in enumerate(({}, {"use_rslora": True})):
        path = tmp_path / f"peft{number}.safetensors"
        assert_stock(stock, with_settings(path, stock, {"lora_alpha": -6.0} | settings))


@pytest.mark.parametrize("pattern", [".*attn1.*", "(a+)+b", "(a|a)(a|a)", "", "to_[", "q" * 301])
def test_a_pattern_that_is_no_name_is_refused(stock: Any, tmp_path: Path, pattern: str) -> None:
    """A stranger's regular expression is not run, and no file is drawn without what it means."""
    settings = {"lora_alpha": 6.0, "alpha_pattern": {pattern: 2.0}}
    path = with_settings(tmp_path / "peft.safetensors", stock, settings)
    with pytest.raises(LoraInvalid, match="pattern"):
        read_adapter(path, stock)


def test_an_alpha_beside_the_weights_wins(stock: Any, tmp_path: Path) -> None:
    """Over kohya's notes on the training, as in diffusers; and over peft's settings."""
    plain = write_kohya(tmp_path / "plain.safetensors", stock, 8, 1, 4.0)
    expected, tensors = own_updates(stock, plain), load_file(plain)
    notes = {"ss_network_alpha": "16", "ss_network_dim": "8"}
    save_file(tensors, tmp_path / "notes.safetensors", notes)
    assert_stock(stock, tmp_path / "notes.safetensors")
    settings = {"unet.lora_alpha": 16.0, "unet.alpha_pattern": {"to_q": 2.0}}
    both = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(tensors, tmp_path / "both.safetensors", both)
    with pytest.raises(ValueError, match="cannot be specified"):  # diffusers takes neither
        stock_updates(stock, tmp_path / "both.safetensors")
    for name in ("notes", "both"):
        ours = own_updates(stock, tmp_path / f"{name}.safetensors")
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[layer], expected[layer]) for layer in ours)


# What a file may hold


def pairs(count: int, rank: int = 1) -> dict[str, torch.Tensor]:
    """Layers of one channel in, one out."""
    return {
        f"{number}.{half}.weight": torch.zeros(shape)
        for number in range(count)
        for half, shape in (("lora_A", (rank, 1)), ("lora_B", (1, rank)))
    }


@pytest.mark.parametrize(
    "tensors, metadata, refusal",
    [
        (pairs(1, 512), {}, None),
        (pairs(1, 513), {}, "rank"),
        (pairs(1, 0), {}, "rank"),
        (pairs(5000), {}, None),
        (pairs(5000) | {"0.alpha": torch.tensor(1.0)}, {}, "more than 10000 tensors"),
        (pairs(1), {"a": "b" * (32 * 2**20 - 1000)}, None),
        (pairs(1), {"a": "b" * (32 * 2**20)}, "reasonable size"),
        ({k: v.half() for k, v in pairs(1).items()}, {}, None),
        ({k: v.bfloat16() for k, v in pairs(1).items()}, {}, None),
        ({k: v.double() for k, v in pairs(1).items()}, {}, "type F64"),
        ({k: v.to(torch.int8) for k, v in pairs(1).items()}, {}, "type I8"),
        ({k: v + 65504 for k, v in pairs(1).items()}, {}, None),
        ({k: v - 65536 for k, v in pairs(1).items()}, {}, "not finite"),
    ],
    ids=lambda value: (
        str(value)[:32] if isinstance(value, (str, type(None))) else type(value).__name__
    ),
)
def test_the_limits_of_a_file(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], refusal: str | None
) -> None:
    """Just within and just beyond each."""
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata)
    if refusal is None:
        assert len(check_lora_file(path)) == len([name for name in tensors if "lora_A" in name])
    else:
        with pytest.raises(LoraInvalid, match=refusal):
            check_lora_file(path)


# Whether it fits the model

NARROW = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 64 to 64
CROSS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # 96 to 64
CONVOLUTION = "unet.down_blocks.0.resnets.0.conv1"  # 64 to 64, of 3 × 3 pixels
LAST = "unet.conv_out"  # 64 to 16, of 3 × 3 pixels
TEXT = "text_encoder.encoder.layers.0.mlp.fc1"  # 96 to 384
FULL = {NARROW: 64, CROSS: 64, CONVOLUTION: 64, LAST: 16, TEXT: 96}

Shapes = dict[str, Sequence[tuple[int, ...]]]


def write_claim(path: Path, shapes: Shapes, missing: int = 0) -> Path:
    """A file whose header claims such halves of layers.

    Its numbers are zeros on no disk, but for the first of each half of the first layer.
    """
    header, end = dict[str, Any](), 0
    for layer, halves in shapes.items():
        for half, shape in zip("AB", halves, strict=True):
            begin, end = end, end + 4 * math.prod(shape)
            claim = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
            header[f"{layer}.lora_{half}.weight"] = claim
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    length = 8 + len(text) + max(0, end - missing)
    os.truncate(path, length)
    if missing == 0:
        with path.open("r+b") as file:
            for claim in list(header.values())[:2]:
                file.seek(8 + len(text) + claim["data_offsets"][0])
                file.write(struct.pack("<f", 1.0))
        os.truncate(path, length)
    return path


def of_ranks(stock: Any, ranks: dict[str, int]) -> Shapes:
    """The halves of layers that fit the model, of such ranks."""
    shapes: Shapes = {}
    for layer, rank in ranks.items():
        part, _, name = layer.partition(".")
        out, *inputs = getattr(stock, part).get_submodule(name).weight.shape
        shapes[layer] = (rank, *inputs), (out, rank, *(1 for _ in inputs[1:]))
    return shapes


@pytest.fixture(name="unread")
def _unread() -> Iterator[None]:
    """Meanwhile no tensor is read."""
    with patch("stylegen.pipeline.adapter._update", side_effect=AssertionError):
        yield


@pytest.mark.parametrize("layer", FULL)
def test_full_rank_fits(stock: Any, tmp_path: Path, layer: str) -> None:
    """As much rank as a layer's smaller side; two other layers have less."""
    ranks = {"unet.conv_in": 1, "unet.mid_block.resnets.0.conv1": 4} | {layer: FULL[layer]}
    path = write_claim(tmp_path / "lora.safetensors", of_ranks(stock, ranks))
    sizes = read_adapter(path, stock).sizes
    assert {layer: size.rank for layer, size in sizes.items()} == ranks


@pytest.mark.parametrize("layer", FULL)
@pytest.mark.usefixtures("unread")
def test_more_than_full_rank_is_refused(stock: Any, tmp_path: Path, layer: str) -> None:
    """One too many, in one layer only; by the model's name of it."""
    ranks = {"unet.conv_in": 1, "unet.mid_block.resnets.0.conv1": 4} | {layer: FULL[layer] + 1}
    path = write_claim(tmp_path / "lora.safetensors", of_ranks(stock, ranks))
    with pytest.raises(LoraInvalid, match=f"{layer}: rank {FULL[layer] + 1}, where {FULL[layer]}"):
        read_adapter(path, stock)


@pytest.mark.parametrize(
    "layer, down, up",
    [
        (NARROW, (64, 4), (4, 64)),
        (NARROW, (4, 64), (4, 64)),
        (NARROW, (4, 65), (64, 4)),
        (NARROW, (4, 64), (63, 4)),
        (NARROW, (4, 64), (64, 5)),
        (NARROW, (4, 320), (320, 4)),
        (NARROW, (4, 64, 3, 3), (64, 4, 1, 1)),
        (NARROW, (4, 64), (64,)),
        (NARROW, (4, 64), ()),
        (CROSS, (4, 64), (96, 4)),
        (CONVOLUTION, (4, 64), (64, 4)),
        (CONVOLUTION, (4, 576), (64, 4)),
        (CONVOLUTION, (4, 64, 1, 1), (64, 4, 1, 1)),
        (CONVOLUTION, (4, 3, 3, 64), (64, 4, 1, 1)),
        (CONVOLUTION, (4, 64, 3, 3), (64, 4, 3, 3)),
        (TEXT, (4, 384), (96, 4)),
        ("text_encoder.encoder.layers.0.mlp", (4, 96), (96, 4)),
        ("unet.conv_norm_out", (1, 64), (64, 1)),
        ("unet.down_blocks", (1, 64), (64, 1)),
        ("vae.encoder.conv_in", (4, 3, 3, 3), (64, 4, 1, 1)),
        (NARROW, (4, 2**26), (2**26, 4)),  # two gigabytes
    ],
    ids=str,
)
@pytest.mark.usefixtures("unread")
def test_shapes_are_compared_before_numbers_are_read(
    stock: Any, tmp_path: Path, layer: str, down: tuple[int, ...], up: tuple[int, ...]
) -> None:
    """Transposed halves, other widths, another layer's kind, what is no layer."""
    shapes = of_ranks(stock, {LAST: 4}) | {layer: (down, up)}
    path = write_claim(tmp_path / "lora.safetensors", shapes)
    with pytest.raises(LoraInvalid, match="base model|normalisation layers"):
        read_adapter(path, stock)


@pytest.mark.parametrize(
    "down, up, missing, refusal",
    [
        ((4, 64), (64, 4), 1, "damaged"),
        ((4, 64), (64, 4), -1, "damaged"),
        ((4, 2**40), (2**40, 4), 2**60, "damaged"),
        ((2**40, 2**40), (64, 4), 2**90, "damaged"),
        ((0, 64), (64, 0), 0, "rank is not between 1 and 512"),
        ((513, 64), (64, 513), 0, "rank is not between 1 and 512"),
    ],
)
@pytest.mark.usefixtures("unread")
def test_a_header_that_claims_too_much(
    stock: Any,
    tmp_path: Path,
    down: tuple[int, ...],
    up: tuple[int, ...],
    missing: int,
    refusal: str,
) -> None:
    """More numbers than there are, or fewer; a rank that is none."""
    path = write_claim(tmp_path / "lora.safetensors", {NARROW: (down, up)}, missing)
    with pytest.raises(LoraInvalid, match=refusal):
        read_adapter(path, stock)


@pytest.mark.parametrize("layer", FULL)
def test_ranks_of_a_job_add_up(stock: Any, tmp_path: Path, layer: str) -> None:
    """Four times full rank in one layer is a job's most; five are refused before they are made."""
    shapes = of_ranks(stock, {"unet.conv_in": 1, layer: FULL[layer]})
    full = read_adapter(write_claim(tmp_path / "lora.safetensors", shapes), stock)
    four = mix_adapters([full] * 4, [1.0] * 4)
    assert (four.sizes[layer].rank, four.sizes["unet.conv_in"].rank) == (4 * FULL[layer], 4)
    assert four.nbytes == 4 * full.nbytes
    with patch("torch.cat", side_effect=AssertionError):
        with pytest.raises(LoraInvalid, match=f"{layer}: .* rank {5 * FULL[layer]}, over"):
            mix_adapters([full] * 5, [1.0, 0.5, -1.0, 0.1, 0.0])


@pytest.mark.parametrize("layer, width", [(NARROW, 128), (TEXT, 480)])
def test_a_jobs_numbers_are_bounded(stock: Any, tmp_path: Path, layer: str, width: int) -> None:
    """Those of all its layers in a part of the model, each by its own rank."""
    shapes = of_ranks(stock, {layer: 20, LAST: 3})
    path = write_claim(tmp_path / "lora.safetensors", shapes)
    last = 3 * (64 * 9 + 16)
    most = 20 * width + (last if layer == NARROW else 0)
    with patch("stylegen.pipeline.adapter.MAX_NUMBERS", most):
        lora = read_adapter(path, stock)
        assert mix_adapters([lora], [0.5]).nbytes == lora.nbytes == 4 * (20 * width + last)
        with pytest.raises(LoraInvalid, match=f"have {2 * most:,} numbers, over"):
            mix_adapters([lora] * 2, [0.5] * 2)
    with patch("stylegen.pipeline.adapter.MAX_NUMBERS", most - 1):
        with patch("stylegen.pipeline.adapter._update", side_effect=AssertionError):
            with pytest.raises(LoraInvalid, match=f"layers? have {most:,} numbers, over"):
                read_adapter(path, stock)


def test_a_small_file_five_times_in_sd15(tmp_path: Path) -> None:
    """Rank 512 on one layer, 1 elsewhere: five of it take five times its bytes, no layer more."""
    with torch.device("meta"):
        unet = make_unet()
    model = SimpleNamespace(unet=unet, text_encoder=None)
    kinds = torch.nn.Linear, torch.nn.Conv2d
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, kinds)}
    wide = next(n for n in layers if n.startswith("down_blocks.1") and n.endswith("attn1.to_q"))
    tensors = {}
    for name, layer in layers.items():
        out, *inputs = layer.weight.shape
        rank = 512 if name == wide else 1
        tensors[f"unet.{name}.lora_A.weight"] = torch.ones(rank, *inputs).half()
        up = torch.ones(out, rank, *(1 for _ in inputs[1:])).half()
        tensors[f"unet.{name}.lora_B.weight"] = up
    save_file(tensors, path := tmp_path / "small.safetensors")
    assert len(layers) == 282 and path.stat().st_size < 3.5 * 2**20
    small = read_adapter(path, model)
    five = mix_adapters([small] * 5, [1.0] * 5)
    assert five.nbytes == 5 * small.nbytes and small.nbytes < 2.1 * path.stat().st_size


# What is saved of a file


def copy_over(other: Path, path: Path) -> None:
    """``cp -p``: another file's bytes in the same inode, with its size and its time."""
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # a tick is some milliseconds
        subprocess.run(["cp", "-p", other, path], check=True)
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert after.st_mtime_ns == before.st_mtime_ns and path.read_bytes() == other.read_bytes()


@pytest.fixture(name="styles")
def _styles(engine: Engine, tmp_path: Path) -> list[Path]:
    """Three files of one size, in a folder that plays a bucket."""
    (tmp_path / "store/artists").mkdir(parents=True)
    paths = [tmp_path / f"store/artists/{name}.safetensors" for name in "abc"]
    for seed, path in enumerate(paths):
        write_diffusers(path, engine.pipeline, 4, seed=seed)
    assert len({path.stat().st_size for path in paths}) == 1
    return paths


class Reads:
    """Reads adapters and counts them, by content."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.digests = pipeline, list[str]()

    def __call__(self, path: Path) -> Adapter:
        adapter = read_adapter(path, self.pipeline)
        self.digests.append(adapter.sha256)
        return adapter


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def url(path: Path) -> str:
    """Where a worker finds one of the `styles`."""
    return f"s3://artists/{path.name}"


def test_an_adapter_is_its_files(engine: Engine, styles: list[Path]) -> None:
    """Overwritten so that only the time of change moves, the next picture has the new style."""
    path, other, _ = styles
    old = engine.adapters.get(path)
    assert engine.adapters.get(path) is old
    copy_over(other, path)
    new, expected = engine.adapters.get(path), read_adapter(other, engine.pipeline)
    assert new.sha256 == expected.sha256 != old.sha256
    assert torch.equal(new.flat, expected.flat) and not torch.equal(new.flat, old.flat)
    assert engine.adapters.get(path) is new


def test_an_engine_keeps_as_many_adapters_as_it_may(pocket: Path, styles: list[Path]) -> None:
    """As many bytes as its caller says; the artist of long ago is read anew."""
    pipeline = load_pipeline(str(pocket / "pocket"), device="cpu")
    room = read_adapter(styles[0], pipeline).nbytes
    small = Engine(pipeline, cache_bytes=room)
    first = small.adapters.get(styles[0])
    assert small.adapters.get(styles[0]) is first
    small.adapters.get(styles[1])
    assert small.adapters.get(styles[0]) is not first


def test_the_disk_cache_is_its_sources(engine: Engine, styles: list[Path], tmp_path: Path) -> None:
    """The same through the whole of a worker: folder, cache on disk, adapters in memory."""
    path, other, _ = styles
    files = LoraFiles(FolderStore(tmp_path / "store"), tmp_path / "cache")
    for _ in range(2):
        with files.get(url(path)) as link:
            assert engine.adapters.get(link).sha256 == digest(path)
        copy_over(other, path)
    with files.get(path.as_uri()) as link:
        assert link.read_bytes() == other.read_bytes()


def test_a_saved_cell_is_its_loras(styles: list[Path], tmp_path: Path) -> None:
    """A grid does not resume with cells of the style that was overwritten."""
    path, other, third = styles
    first, second, _ = folder_loras(path.parent)
    fields = {"prompt_tags": ["star"], "artist_name": "A", "webhook_url": "http://localhost"}
    job = make_job(fields | {"style_id": "a", "lora_model_url": first.url})
    loras: list[LoraFile] = [first, second]
    save_cell(Picture(job, Image.new("RGB", (8, 8))), loras, tmp_path / "cells")
    assert find_cell(job, loras, tmp_path / "cells")
    for overwritten in (other, path):
        copy_over(third, overwritten)
        assert find_cell(job, loras, tmp_path / "cells") is None


def test_the_same_content_is_read_once(engine: Engine, styles: list[Path], tmp_path: Path) -> None:
    """Each job's link changes the file's time of change; its adapter stays in memory."""
    read = Reads(engine.pipeline)
    files = LoraFiles(FolderStore(tmp_path / "store"), tmp_path / "cache")
    cache, changed = AdapterCache(read), set()
    for _ in range(3):
        with files.get(url(styles[0])) as link:
            cache.get(link)
            changed.add(link.stat().st_ctime_ns)
    styles[0].chmod(0o600)
    assert cache.get(styles[0]) is cache.get(styles[0])
    assert read.digests == [digest(styles[0])] * 2 and len(changed) > 1


@pytest.mark.parametrize("used", [[0, 1, 0], [0, 1, 1, 0, 0], [1, 0]])
def test_memory_drops_the_least_recently_used(
    engine: Engine, styles: list[Path], used: list[int]
) -> None:
    """Room for two, and a third comes: the second goes, by the order of use and not of reading."""
    read, (first, second, third) = Reads(engine.pipeline), map(digest, styles)
    cache = AdapterCache(read, max_bytes=2 * read(styles[0]).nbytes)
    for number in [*used, 2]:
        cache.get(styles[number])
    assert sorted(read.digests[1:]) == sorted([first, second, third])
    del read.digests[:]
    for number in (0, 2):
        cache.get(styles[number])
    assert not read.digests
    cache.get(styles[1])
    cache.get(styles[2])
    assert read.digests == [second]
    cache.get(styles[0])
    assert read.digests == [second, first]


@pytest.mark.parametrize("used", [[0, 1, 0], [0, 1, 1, 0, 0], [1, 0]])
def test_the_disk_drops_the_least_recently_used(
    styles: list[Path], tmp_path: Path, used: list[int]
) -> None:
    """The same of the cache that workers share."""
    hits: list[bool] = []
    room = 2 * styles[0].stat().st_size
    store = FolderStore(tmp_path / "store")
    files = LoraFiles(store, tmp_path / "cache", room, hits.append)

    def get(number: int) -> bool:
        with files.get(url(styles[number])) as link:
            assert link.stat().st_size == room // 2  # to read it would be a use of its own
        return hits[-1]

    for number in [*used, 2]:
        get(number)
    assert [get(0), get(2), get(1), get(2), get(0)] == [True, True, False, True, False]
    assert sum(blob.stat().st_size for blob in (tmp_path / "cache/blobs").iterdir()) == room


def test_the_newest_stays_however_large(engine: Engine, styles: list[Path]) -> None:
    """An adapter that no budget holds is read once for its job's two rows, and for the next."""
    read = Reads(engine.pipeline)
    cache = AdapterCache(read, max_bytes=0)
    assert cache.get(styles[0]) is cache.get(styles[0])
    cache.get(styles[1])
    assert len(read.digests) == 2
    cache.get(styles[0])
    assert len(read.digests) == 3


def test_a_third_style_of_the_packaged_ones_fits(engine: Engine) -> None:
    """A budget of exactly what is held drops nothing."""
    paths = sorted((packaged() / "pocket-loras").glob("*.safetensors"))
    read = Reads(engine.pipeline)
    sizes = [read(path).nbytes for path in paths]
    cache = AdapterCache(read, max_bytes=sum(sizes))
    for path in [*paths, *paths]:
        cache.get(path)
    assert len(read.digests) == 2 * len(paths)
