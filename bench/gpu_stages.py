"""What only a GPU can tell, in stages: `bench/gpu.py` runs them and says what they mean.

Each has the size that a card wants (`FULL`) and one that a CPU does in seconds (`TINY`): the code
is the same, so that no line of it runs for the first time on the card.
"""

import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from stylegen.pipeline.adapter import Adapter, read_adapter
from stylegen.pipeline.batched_lora import AddedLora, BatchedLora, MergedLora
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.prompt import encode_prompt
from stylegen.storage import FolderStore
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, handle_generation_task

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
# pylint: disable=wrong-import-position
from engine import Peers, cold_start, draw_together, order, timed  # noqa: E402
from lora_files import write_diffusers  # noqa: E402
from sd15 import SD15, TINY, Shape, make_pipeline, make_unet  # noqa: E402
from stages import Record  # noqa: E402
from stored import processor, where  # noqa: E402

LORA_SIZE = 0.03
"""Of the halves' values: a tenth of the base's weights, as a trained LoRA's."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy")
CLOCKS = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        name: What figures of this size are called.
        shape: Of the model.
        batches: Jobs in a batch, where steps are timed.
        batch: Jobs in a batch, where pictures are.
        ranks: Of LoRAs for compiled engines.
        steps: Of a whole picture.
        timed_steps: Of which a step's time is the median.
        repeats: Of each peer, and of each call that is timed alone.
        jobs: End to end.
        matmul: Side of the matrices whose product is the device's best.
        copy_bytes: To copy within the device.
        backend: Compiles.
    """

    name: str = "full"
    shape: Shape = SD15
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    batch: int = 8
    ranks: tuple[int, ...] = (16, 128)
    steps: int = 50
    timed_steps: int = 16
    repeats: int = 3
    jobs: int = 16
    matmul: int = 8192
    copy_bytes: int = 2**32
    backend: str = "inductor"


FULL = Sizes()
SMALL = Sizes(
    name="dry run",
    shape=TINY,
    batches=(1, 2),
    batch=2,
    ranks=(32,),
    steps=2,
    timed_steps=2,
    repeats=1,
    jobs=3,
    matmul=128,
    copy_bytes=2**20,
    backend="eager",
)


@dataclass
class GpuBench:
    """A device, a model for it, and how to time what it does.

    Args:
        device: ``cuda`` or ``cpu``.
        sizes: How much of everything.
        folder: For files that nobody needs later.
    """

    device: str
    sizes: Sizes
    folder: Path

    def __post_init__(self) -> None:
        self._held = 0
        self.is_cuda = self.device == "cuda"
        self.half = torch.float16 if self.is_cuda else torch.bfloat16
        self.dtype = torch.float16 if self.is_cuda else torch.float32
        if self.is_cuda:
            torch.cuda.init()
        else:
            torch.set_num_threads(1)

    def facts(self) -> dict[str, Any]:
        """Where and by what: the device, its driver and clocks, versions, the commit."""
        facts = {"device": processor(), "sizes": self.sizes.name} | where(*LIBRARIES)
        if self.is_cuda:
            facts |= {"cuda": torch.version.cuda, "device": torch.cuda.get_device_name()}
            facts |= _clocks()
        return facts

    def forget(self) -> None:
        """Give memory back; raises if the device is lost."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._held = torch.cuda.memory_allocated()

    def peak_gb(self) -> dict[str, float]:
        """The most memory that tensors have taken since the last `forget`, and what they had then.

        Stages share pipelines, which stay: the difference is a stage's own.
        """
        peak = torch.cuda.max_memory_allocated() if self.is_cuda else 0
        return {"peak": round(peak / 2**30, 2), "before": round(self._held / 2**30, 2)}

    def pipeline(self, dtype: torch.dtype | None = None) -> Any:
        """The model, made anew on the device, with the same weights each time."""
        return make_pipeline(self.sizes.shape, self.device, dtype or self.dtype)

    def loras(self, count: int, rank: int = 16, *, convolutions: bool = False) -> list[Path]:
        """So many artists' files, each written once."""
        kind, paths = f"{rank}{'-locon' if convolutions else ''}", []
        options: dict[str, Any] = {"convolutions": convolutions, "size": LORA_SIZE}
        for number in range(count):
            path = self.folder / f"{kind}-{number}.safetensors"
            if not path.exists():
                write_diffusers(path, self._shapes, rank, number, **options)
            paths.append(path)
        return paths

    @cached_property
    def _shapes(self) -> Any:
        with torch.device("meta"):
            return SimpleNamespace(unet=make_unet(self.sizes.shape))

    def mark(self) -> Any:
        """A moment of the device's clock."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, marks: Sequence[Any]) -> list[float]:
        """Seconds between each two neighbours."""
        if self.is_cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:], strict=False)]
        return [b - a for a, b in zip(marks, marks[1:], strict=False)]

    def seconds(self, call: Callable[[], Any]) -> list[float]:
        """The device's time for a call, `Sizes.repeats` times; the first two are not counted."""
        values = []
        for _ in range(self.sizes.repeats + 2):
            marks = [self.mark()]
            call()
            marks.append(self.mark())
            values += self.between(marks)
        return values[2:]

    @cached_property
    def peers(self) -> Peers:
        """Stock and ours, not compiled."""
        return self._peers(None)

    @cached_property
    def compiled(self) -> Peers:
        """Stock and ours, compiled."""
        return self._peers(self.sizes.backend)

    def _peers(self, backend: str | None) -> Peers:
        batch, steps = self.sizes.batch, self.sizes.steps
        return Peers(self.pipeline, batch, steps, self.loras(2 * batch), backend)


def _clocks() -> dict[str, str]:
    """Driver, clocks, power and temperature at this moment, where the driver's tool is at hand."""
    asked = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in said.partition("\n")[0].split(",")]
    return dict(zip(CLOCKS.split(","), values, strict=False))


def open_bench(dry_run: bool, folder: Path) -> GpuBench:
    """The card's bench; the CPU's for a dry run.

    Raises:
        SystemExit: There is no card.
    """
    if dry_run:
        return GpuBench("cpu", SMALL, folder)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --dry-run tries everything on the CPU")
    return GpuBench("cuda", FULL, folder)


def figure(seconds: Sequence[float], *, scale: float = 1000, digits: int = 3) -> dict[str, float]:
    """Median and spread, in milliseconds unless scaled otherwise."""
    parts = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    rounded = {name: round(value * scale, digits) for name, value in parts.items()}
    return rounded | {"count": len(seconds)}


# What the device can do at all


def peaks(bench: GpuBench, record: Record) -> None:
    """The device's own best: a product of large matrices of random numbers, and a copy."""
    side, size = bench.sizes.matmul, bench.sizes.copy_bytes
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    times = 50  # a single product would be over before the clocks are up
    product = statistics.median(bench.seconds(lambda: [a @ b for _ in range(times)])) / times
    record("matmul_tflops", round(2 * side**3 / product / 1e12, 3))
    source = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copy = statistics.median(bench.seconds(lambda: target.copy_(source)))
    record("copy_gb_per_s", round(2 * size / copy / 1e9, 3))
    pinned = torch.zeros(size // 16, dtype=torch.uint8, pin_memory=bench.is_cuda)
    upload = statistics.median(bench.seconds(lambda: target[: size // 16].copy_(pinned)))
    record("upload_gb_per_s", round(size / 16 / upload / 1e9, 3))


# Steps


def step_seconds(
    bench: GpuBench,
    engine: Engine,
    loras: Sequence[Path],
    *,
    scale: float = 1.0,
    on_begin: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of the steps in which all jobs are in the batch, one job a LoRA.

    Raises:
        MemoryError: The batch was halved.
    """
    steps, marks, counts, others = bench.sizes.timed_steps + 2, [], [], [0]

    def first(*_: Any) -> None:
        marks.append(bench.mark())
        counts.append(others[0])

    def other(*_: Any) -> None:
        others[0] += 1

    jobs = [order(n, steps).model_copy(update={"lora_scale": scale}) for n in range(len(loras))]
    listeners = [first, *[other] * (len(loras) - 1)]
    draw_together(engine, jobs, loras, on_begin, listeners)
    if set(np.diff(counts[1:])) != {len(loras) - 1}:
        raise MemoryError("the batch was halved")
    return bench.between(marks[1:])  # the first step was taken alone


KINDS = {"no LoRA": (False, 0.0), "low-rank": (False, 1.0), "merged": (True, 1.0)}


def eager(bench: GpuBench, record: Record) -> None:
    """Does batching pay? A guided step of each batch, with rank 16 in both forms and without."""
    for kind, (merged, scale) in KINDS.items():
        most = max(bench.sizes.batches)
        engine = Engine(bench.pipeline(), batch=most, merge_loras=merged)
        for count in bench.sizes.batches:
            try:
                seconds = step_seconds(bench, engine, bench.loras(count), scale=scale)
                record(f"{kind}, batch {count}, ms a step", figure(seconds))
            except MemoryError as error:
                record(f"{kind}, batch {count}, ms a step", str(error))
        record(f"{kind}, peak GB", bench.peak_gb())
        engine.close()
        del engine
        bench.forget()


def graph_count() -> int:
    """Graphs that this process has compiled."""
    return int(counters["stats"]["unique_graphs"])


def compiled(bench: GpuBench, record: Record) -> None:
    """Compiled, each row with its own weights: how fast, and how many graphs for which ranks."""
    engine = bench.compiled.merged
    for rank in bench.sizes.ranks:
        for count in (1, bench.sizes.batch):
            loras, before, began = bench.loras(count, rank), graph_count(), time.perf_counter()
            step_seconds(bench, engine, loras)
            first, graphs = time.perf_counter() - began, graph_count() - before
            times = figure(step_seconds(bench, engine, loras))
            more = {"new graphs": graphs, "first pictures after s": round(first, 1)}
            record(f"rank {rank}, batch {count}, ms a step", times | more)
    record("peak GB", bench.peak_gb())


def cuda_graphs(bench: GpuBench, record: Record) -> None:
    """The same, each graph recorded once and replayed; what four other batches record anew."""
    from torch._inductor import config
    from torch._inductor import cudagraph_trees as trees

    recorded, original = [0], trees.CUDAGraphTreeManager.record_function

    def counted(*given: Any, **options: Any) -> Any:
        recorded[0] += 1
        return original(*given, **options)

    count, before = bench.sizes.batch, graph_count()
    torch._dynamo.reset()  # nothing that was compiled without CUDA graphs is to be used
    engine = Engine(
        bench.pipeline(), batch=count, compile_backend=bench.sizes.backend, merge_loras=True
    )
    wheel = bench.loras(count + 4)
    trees.CUDAGraphTreeManager.record_function = counted  # type: ignore[method-assign]
    try:
        step_seconds(bench, engine, wheel[:count], on_begin=use_cuda_graphs)
        record("graphs", graph_count() - before)
        for number in range(5):
            before = recorded[0]
            times = figure(step_seconds(bench, engine, wheel[number : number + count]))
            more = {"recordings": recorded[0] - before}
            record(f"batch {count}, LoRAs {number}, ms a step", times | more)
        record("skipped", int(counters["inductor"]["cudagraph_skips"]))
        record("peak GB", bench.peak_gb())
    finally:
        config.triton.cudagraphs = False
        trees.CUDAGraphTreeManager.record_function = original  # type: ignore[method-assign]
        engine.close()


def use_cuda_graphs() -> None:
    """Let inductor record graphs, on the thread that calls this."""
    from torch._inductor import config
    from torch._inductor import cudagraph_trees as trees

    if not hasattr(trees.local, "tree_manager_containers"):
        # Before torch 2.12 a thread of one's own has none, and meets an assertion.
        trees.local.tree_manager_containers = {}
        trees.local.tree_manager_locks = trees.defaultdict(trees.threading.Lock)
    config.triton.cudagraphs = True


# Pictures


def take_turns(
    bench: GpuBench, record: Record, calls: dict[str, tuple[Callable[[], object], int]]
) -> None:
    """Seconds a picture of each peer, by turns; the first round warms up and counts as none."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(bench.sizes.repeats + 1):
        for name, (call, count) in calls.items():
            value = timed(call) / count
            if number:
                seconds[name].append(value)
            shown = figure(seconds[name] or [value], scale=1, digits=4)
            record(f"{name}, s a picture", shown | {"count": number})


def peers(bench: GpuBench, record: Record) -> None:
    """Stock diffusers beside ours, another LoRA for every job."""
    all_of, size = bench.peers, bench.sizes.batch
    ours = all_of.ours
    take_turns(
        bench,
        record,
        {
            "P1": (all_of.p1, 1),
            "ours, batch 1": (partial(ours, 1), 1),
            f"ours, batch {size}": (partial(ours, size), size),
            f"ours, merged, batch {size}": (partial(ours, size, merged=True), size),
            f"P4, batch {size}": (partial(ours, size, same_lora=True), size),
        },
    )


def tuned(bench: GpuBench, record: Record) -> None:
    """Stock diffusers at its best beside ours, both compiled."""
    all_of, size = bench.compiled, bench.sizes.batch
    ours = partial(all_of.ours, merged=True)
    take_turns(
        bench,
        record,
        {
            "P2": (all_of.p2, 1),
            "ours, batch 1": (partial(ours, 1), 1),
            f"ours, batch {size}": (partial(ours, size), size),
        },
    )


def end_to_end(bench: GpuBench, record: Record) -> None:
    """Whole jobs, all at once: message, LoRA, picture, signature, label, store, webhooks."""
    whole_jobs(bench, record, bench.peers.merged)


def end_to_end_compiled(bench: GpuBench, record: Record) -> None:
    """The same, compiled."""
    whole_jobs(bench, record, bench.compiled.merged)


def whole_jobs(bench: GpuBench, record: Record, engine: Engine) -> None:
    """Pictures a second and latencies of `Sizes.jobs` jobs that come together.

    Raises:
        RuntimeError: A job has failed: it is no picture to count.
    """
    size, count, steps = bench.sizes.batch, bench.sizes.jobs, bench.sizes.steps
    folder, loras = bench.folder / "bucket", bench.loras(2 * size)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for lora in loras:
        (folder / "models" / lora.name).write_bytes(lora.read_bytes())
    with WebhookReceiver() as backend:
        parts = Parts(engine.draw, FolderStore(folder), (backend.url,), "token-of-the-bench")

        def one(number: int) -> float:
            job = order(number, steps).model_dump(mode="json", exclude_none=True)
            began = time.perf_counter()
            url = f"s3://models/{loras[number % len(loras)].name}"
            job |= {"lora_model_url": url, "webhook_url": backend.url}
            if code := handle_generation_task(job, parts).error_code:
                raise RuntimeError(f"a job has failed: {code}")
            return time.perf_counter() - began

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(one, range(count)))  # warms up: plans are made for each width of a batch
            began = time.perf_counter()
            latencies = list(pool.map(one, range(count, 2 * count)))
            seconds = time.perf_counter() - began
    record("pictures a second", round(count / seconds, 3))
    record("latency p50, s", round(float(np.percentile(latencies, 50)), 3))
    record("latency p99, s", round(float(np.percentile(latencies, 99)), 3))
    record("guided steps a second", round(count * steps / seconds, 3))
    record("peak GB", bench.peak_gb())


def cold(bench: GpuBench, record: Record) -> None:
    """From a new process to its first picture."""
    folder = bench.folder / "model"
    bench.pipeline().save_pretrained(folder)
    for name, backend in (("", None), (", compiled", bench.sizes.backend)):
        seconds, memory = cold_start(str(folder), bench.device, bench.sizes.steps, backend)
        record(f"first picture{name}, s", round(seconds, 2))
        record(f"peak{name}, GB", round(memory, 2))


# Parts of a job


def _loras_of(form: str, pipeline: Any, jobs: int) -> BatchedLora:
    """A UNet's LoRAs in one of the two forms."""
    own = pipeline.unet, "unet", pipeline.unet.device
    return MergedLora(*own, jobs) if form == "merged" else AddedLora(*own)


@torch.no_grad()
def change(bench: GpuBench, record: Record) -> None:
    """Another artist's LoRA in one row's place, from disk and from memory; by stock diffusers."""
    pipeline, size = bench.pipeline(), bench.sizes.batch
    files = bench.loras(size + 1)
    record("from disk, ms", figure(bench.seconds(lambda: read_adapter(files[0], pipeline))))
    adapters = [read_adapter(path, pipeline) for path in files]
    for name in ("low-rank", "merged"):
        rows, turn = _loras_of(name, bench.pipeline(), size), iter(range(10**9))

        def put(rows: BatchedLora = rows, turn: Iterator[int] = turn) -> None:
            mine = adapters[next(turn) % 2]
            rows.put([mine, *adapters[2:]])

        record(f"{name}, one of {size} jobs, ms", figure(bench.seconds(put)))
    stock = bench.pipeline()

    def load() -> None:
        stock.load_lora_weights(files[0].parent, weight_name=files[0].name)
        stock.unload_lora_weights()

    record("P1, ms", figure(bench.seconds(load)))


def locon(bench: GpuBench, record: Record) -> None:
    """Convolutions with a LoRA each: all rows as groups of one, or job by job."""
    pipeline, size = bench.pipeline(), bench.sizes.batch
    files = bench.loras(size, 8, convolutions=True)
    adapters = [read_adapter(path, pipeline) for path in files]
    rows = _loras_of("merged", pipeline, size)
    rows.put(adapters)
    blocks = [name for name, _ in pipeline.unet.named_modules() if name.endswith("resnets.0.conv1")]
    for name in (blocks[0], blocks[-1]):  # those of the full resolution
        module = pipeline.unet.get_submodule(name)
        side = bench.sizes.shape.side
        shape = (2 * size, module.in_channels, side, side)
        x = torch.randn(shape, device=bench.device, dtype=bench.dtype)
        with torch.no_grad():
            record(f"{name}, grouped, ms", figure(bench.seconds(partial(module, x))))
            apart = partial(_job_by_job, module, f"unet.{name}", adapters, x)
            record(f"{name}, job by job, ms", figure(bench.seconds(apart)))


def _job_by_job(module: Any, name: str, adapters: Sequence[Adapter], x: torch.Tensor) -> Any:
    base, parts = module._conv_forward(x, module.weight, module.bias), []
    for adapter, mine in zip(adapters, x.split(2), strict=True):
        down, up = (half.to(x.device, non_blocking=True) for half in adapter.updates[name])
        inner = F.conv2d(mine, down, None, module.stride, module.padding)
        parts.append(F.conv2d(inner, up[:, :, None, None]))
    return base + torch.cat(parts)


def ends(bench: GpuBench, record: Record) -> None:
    """Words, decoding, and how much of a step the device has nothing to do."""
    pipeline = bench.pipeline()
    job, side = order(0, bench.sizes.steps), bench.sizes.shape.side
    with torch.no_grad():
        words = partial(encode_prompt, pipeline, job, torch.device(bench.device))
        record("two prompts, ms", figure(bench.seconds(words)))
        for count in (1, 4):
            shape = (count, 4, side, side)
            latents = torch.randn(shape, device=bench.device, dtype=bench.dtype)
            decode = partial(pipeline.vae.decode, latents)
            record(f"decode {count}, ms", figure(bench.seconds(decode)))
    engine = Engine(pipeline, batch=bench.sizes.batch, merge_loras=True)
    for count in (1, bench.sizes.batch):
        record(f"batch {count}, a step", profile(bench, engine, bench.loras(count)))
    engine.close()


def profile(bench: GpuBench, engine: Engine, loras: Sequence[Path]) -> dict[str, float | None]:
    """Kernels a step, and the share of the time in which one of them runs."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CUDA] if bench.is_cuda else [ProfilerActivity.CPU]
    with profiler(activities=kinds):
        pass  # it wants to begin on the thread that has imported torch
    watched, steps = profiler(activities=kinds), bench.sizes.timed_steps

    def on_latents(step: int, _: Any) -> None:
        if step in (2, steps + 1):
            bench.between([bench.mark()])  # waits for the device
            watched.start() if step == 2 else watched.stop()

    jobs = [order(n, steps + 2) for n in range(len(loras))]
    nothing = [lambda *_: None] * (len(loras) - 1)
    draw_together(engine, jobs, loras, on_latents=[on_latents, *nothing])
    device = torch.autograd.DeviceType.CUDA if bench.is_cuda else torch.autograd.DeviceType.CPU
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in watched.events()
        if event.device_type == device
    )
    busy, last = 0.0, 0.0
    for start, end in spans:
        busy, last = busy + max(0.0, end - max(start, last)), max(last, end)
    whole = last - spans[0][0] if spans else 0.0
    share = round(busy / whole, 3) if whole else None
    return {"operations": round(len(spans) / max(1, steps - 1)), "busy share": share}


def precision(bench: GpuBench, record: Record) -> None:
    """One forward's error in half precision against single, ours beside stock's."""
    files, size = bench.loras(4), 4
    torch.backends.cudnn.allow_tf32 = False
    exact, stock = bench.pipeline(torch.float32), bench.pipeline(bench.half)
    side = bench.sizes.shape.side
    source = torch.Generator().manual_seed(0)
    words = torch.randn(size, 77, bench.sizes.shape.words, generator=source)
    given = [torch.randn(size, 4, side, side, generator=source), torch.full((size,), 500), words]

    def forward(unet: Any, *rows: torch.Tensor) -> torch.Tensor:
        kinds = [value.to(bench.device) for value in rows]
        floats = [v.to(unet.dtype) if v.is_floating_point() else v for v in kinds]
        with torch.no_grad():
            return unet(*floats).sample.double()

    def alone(pipeline: Any) -> list[torch.Tensor]:
        rows = []
        for number, file in enumerate(files):
            pipeline.load_lora_weights(file.parent, weight_name=file.name)
            rows.append(forward(pipeline.unet, *(v[number : number + 1] for v in given)))
            pipeline.unload_lora_weights()
        return rows

    right = torch.cat(alone(exact))
    stocks = _errors(torch.cat(alone(stock)), right)
    record("stock, relative error", figure(stocks, scale=1, digits=6))
    adapters = [read_adapter(file, stock) for file in files]
    for name in ("low-rank", "merged"):
        pipeline = bench.pipeline(bench.half)
        _loras_of(name, pipeline, size).put(adapters)
        errors = _errors(forward(pipeline.unet, *given), right)
        ratios = [mine / other for mine, other in zip(errors, stocks, strict=True)]
        record(f"{name}, relative error", figure(errors, scale=1, digits=6))
        record(f"{name}, error against stock's", figure(ratios, scale=1, digits=3))


def _errors(rows: torch.Tensor, right: torch.Tensor) -> list[float]:
    return [float((row - true).norm() / true.norm()) for row, true in zip(rows, right, strict=True)]


# Right at all


def correctness(bench: GpuBench, record: Record) -> None:
    """``pytest -m gpu``, each test a figure."""
    options = ["-p", "no:cacheprovider", "-p", "pytest_timeout", "--confcutdir=tests/gpu"]
    options += ["--device", bench.device]
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "tests/gpu", *options]
    _each(command, r"^\S+::(\S+) (PASSED|FAILED|ERROR|SKIPPED)", "PASSED", record)


def notebooks(_: GpuBench, record: Record) -> None:
    """The notebooks' cells that are tagged ``gpu``, with those that come before them."""
    command = [sys.executable, str(ROOT / "bench/gpu_cells.py")]
    _each(command, r"^(\S+\.ipynb) (OK|FAILED)", "OK", record)


def _each(command: Sequence[str], pattern: str, good: str, record: Record) -> None:
    """Record what a command says of each thing that it tries, as it says it."""
    tried = re.compile(pattern)
    bare = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # whatever the machine has
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": bare}
    said = []
    with subprocess.Popen(command, **options) as process:
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            if found := tried.match(line):
                record(found[1], found[2].lower())
                said.append(found[2])
    if process.returncode or not said or set(said) != {good}:
        raise AssertionError(f"{sum(word != good for word in said)} of {len(said)} failed")
