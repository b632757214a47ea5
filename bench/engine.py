"""The engine against its peers, in one run: throughput, latency, LoRA change, overhead.

Usage: ``python bench/engine.py [--repeats N] [--steps S] [--batch B …] [--model FOLDER]
[--device cuda] [--compile]``: one run for each B, by default 1, 2 and 4.
``--model random-sd15`` is Stable Diffusion 1.5 with random weights.
Peers take turns within each repeat; every job has another LoRA than the one before (but P4).
Prints a table, writes ``bench/results/engine.json`` and draws ``bench/results/engine.svg`` for the
pocket model on a CPU at batch 4 (other models, devices and batches: a name of their own).

* P0: the code guide's own flow, the pipeline loaded anew for each job: as it is written, in float16
  (for which a CPU is slow), and in float32 as all others
* P1: stock diffusers, resident, ``load_lora_weights`` and ``unload_lora_weights`` for each job
* P2 (with ``--compile``): stock at its best, channels_last, compiled, the LoRA hot-swapped
* P3: peft's mixed batch by ``adapter_names``, the batch's LoRAs loaded and unloaded
* P4: our engine with one LoRA for all, the ceiling of a mixed batch
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer

from stylegen.job import GenerationJob
from stylegen.pipeline import load_pipeline
from stylegen.pipeline.batch import Batch
from stylegen.pipeline.encode_decode import EncodeDecode
from stylegen.pipeline.engine import Engine
from stylegen.pipeline.schedulers import make_scheduler
from stylegen.pipeline.adapter import read_adapter
from stylegen.pipeline.batched_lora import AddedLora, BatchedLora
from stylegen.pocket import Scene, caption, packaged

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from lora_files import write_diffusers  # noqa: E402  pylint: disable=wrong-import-position

from sd15 import build_sd15  # noqa: E402
from stored import store  # noqa: E402


def order(seed: int, steps: int) -> GenerationJob:
    """A fresh job: its own scene, seed and artist."""
    return GenerationJob(
        generation_id=seed + 1,
        style_id=seed,
        lora_model_url="s3://models/style.safetensors",
        prompt_tags=tuple(caption(Scene.random(np.random.default_rng(seed)))),
        artist_name="bench",
        webhook_url="http://localhost",
        seed=seed,
        num_inference_steps=steps,
    )


def arguments(pipeline: Any, jobs: Sequence[GenerationJob]) -> dict[str, Any]:
    """What stock diffusers is called with for some jobs."""
    pipeline.scheduler = make_scheduler(jobs[0].scheduler, pipeline.scheduler.config)
    return {
        "prompt": [job.prompt for job in jobs],
        "num_inference_steps": jobs[0].num_inference_steps,
        "guidance_scale": float(jobs[0].guidance_scale),
        "generator": [torch.Generator().manual_seed(job.seed) for job in jobs],
    }


class Peers:
    """All that is timed, on one base model and a wheel of LoRA files; made when it is first asked.

    Args:
        load: Makes a pipeline, the same each time.
        batch: Jobs in one batch.
        steps: Of each picture.
        loras: Files of rank 16, each another artist's; more than fit a batch.
        backend: Compile the engines' UNets, and that of P2, by it.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        batch: int,
        steps: int,
        loras: Sequence[Path],
        backend: str | None = None,
    ) -> None:
        self.load, self.batch, self.steps, self.backend = load, batch, steps, backend
        self.wheel: Iterator[Path] = cycle(loras)
        self.seeds = iter(range(1_000_000))

    @cached_property
    def stock(self) -> Any:
        """The pipeline of P1."""
        return self.load()

    @cached_property
    def mixed(self) -> Any:
        """The pipeline of P3."""
        return self.load()

    @cached_property
    def tuned(self) -> Any:
        """The pipeline of P2: compiled at its first picture, with room for a LoRA."""
        tuned = self.load()
        tuned.unet.to(memory_format=torch.channels_last)
        tuned.enable_lora_hotswap(target_rank=16)
        self.swap(tuned, hotswap=False)
        tuned.unet.compile(backend=self.backend, dynamic=False)
        return tuned

    @cached_property
    def engine(self) -> Engine:
        """Ours."""
        return Engine(self.load(), batch=self.batch, compile_backend=self.backend)

    @cached_property
    def merged(self) -> Engine:
        """Ours, each row with weights of its own."""
        options: dict[str, Any] = {"compile_backend": self.backend, "merge_loras": True}
        return Engine(self.load(), batch=self.batch, **options)

    def swap(self, tuned: Any, *, hotswap: bool = True) -> None:
        """Another LoRA for the tuned pipeline."""
        lora = next(self.wheel)
        names = {"weight_name": lora.name, "adapter_name": "job", "hotswap": hotswap}
        tuned.load_lora_weights(lora.parent, **names)

    def jobs(self, count: int) -> list[GenerationJob]:
        """Fresh jobs."""
        return [order(next(self.seeds), self.steps) for _ in range(count)]

    def p0(self, load: Callable[[], Any]) -> None:
        """Load everything, draw one picture, throw everything away."""
        lora, pipeline = next(self.wheel), load()
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
        pipeline(**arguments(pipeline, self.jobs(1)))

    def p1(self) -> None:
        """A resident stock pipeline; the LoRA comes and goes."""
        lora = next(self.wheel)
        self.stock.load_lora_weights(lora.parent, weight_name=lora.name)
        self.stock(**arguments(self.stock, self.jobs(1)))
        self.stock.unload_lora_weights()

    def p2(self) -> None:
        """A compiled stock pipeline whose LoRA is swapped in place."""
        self.swap(self.tuned)
        self.tuned(**arguments(self.tuned, self.jobs(1)))

    def p3(self) -> None:
        """peft's own mixed batch."""
        names = [f"a{i}" for i in range(self.batch)]
        for name in names:
            lora = next(self.wheel)
            self.mixed.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name=name)
        self.mixed.set_adapters(names)
        with adapter_names(self.mixed.unet, names * 2):
            self.mixed(**arguments(self.mixed, self.jobs(self.batch)))
        self.mixed.unload_lora_weights()

    def ours(self, count: int, *, same_lora: bool = False, merged: bool = False) -> None:
        """The engine: as many jobs at once as are asked for."""
        engine = self.merged if merged else self.engine
        first = next(self.wheel)
        loras = [first if same_lora else next(self.wheel) for _ in range(count)]
        draw_together(engine, self.jobs(count), loras)

    def close(self) -> None:
        """End the engines' threads."""
        for name in ("engine", "merged"):
            if name in vars(self):
                getattr(self, name).close()


def write_loras(pipeline: Any, folder: Path, count: int) -> list[Path]:
    """So many artists of rank 16 for a pipeline, which is needed for its shapes alone."""
    names = [folder / f"{number}.safetensors" for number in range(count)]
    return [write_diffusers(name, pipeline, 16, seed=n) for n, name in enumerate(names)]


def load_as_written(model: str, device: str) -> Any:
    """The guide's pipeline: in float16, wherever it is."""
    half = {"torch_dtype": torch.float16}
    pipeline = StableDiffusionPipeline.from_pretrained(model, **half).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_together(
    engine: Engine,
    jobs: Sequence[GenerationJob],
    loras: Sequence[Path],
    on_begin: Callable[[], None] = lambda: None,
    on_latents: Sequence[Callable[..., None]] = (),
) -> list[Any]:
    """Draw jobs in one batch: the first takes its first step alone, then all others join.

    Args:
        engine: With a batch of at least as many.
        jobs: Of one format.
        loras: A file for each.
        on_begin: Called before the first step, on the thread that takes it.
        on_latents: For each of the jobs, see `Engine.draw`; or for none.

    Returns:
        Their pictures.
    """
    everyone, listeners = threading.Event(), on_latents or [None] * len(jobs)

    def wait(step: int) -> None:
        if step == 0:
            on_begin()
            everyone.wait()

    pictures = []
    try:
        for job, lora, listener in zip(jobs, loras, listeners, strict=True):
            on_step = None if pictures else wait
            pictures.append(engine.submit(job, lora, on_step=on_step, on_latents=listener))
    finally:
        everyone.set()
    return [picture.result() for picture in pictures]


@contextmanager
def adapter_names(unet: Any, names: list[str]) -> Iterator[None]:
    """Let each row of a batch use its own adapter, as `peft.PeftModel` does."""

    def tell(_: Any, inputs: Any, options: dict[str, Any]) -> Any:
        return inputs, options | {"adapter_names": names}

    layers = [layer for layer in unet.modules() if isinstance(layer, LoraLayer)]
    hooks = [layer.register_forward_pre_hook(tell, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def time_latency(peers: Peers, count: int) -> dict[str, list[float]]:
    """Seconds of `count` single jobs, one after the other, stock and ours by turns."""
    calls = {"P1 stock, resident": peers.p1, "ours": partial(peers.ours, 1)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return seconds


def time_jobs(peers: Peers, repeats: int, as_written: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds a job of each peer, interleaved; the first round warms up and is not counted."""
    size = peers.batch
    rows: dict[str, tuple[Callable[[], object], int]] = {
        "P0 guide, as written": (partial(peers.p0, as_written), 1),
        "P0 guide, float32": (partial(peers.p0, peers.load), 1),
        "P1 stock, resident": (peers.p1, 1),
        f"P3 peft mixed, batch {size}": (peers.p3, size),
        f"P4 one LoRA, batch {size}": (partial(peers.ours, size, same_lora=True), size),
        "ours, batch 1": (partial(peers.ours, 1), 1),
        f"ours, batch {size}": (partial(peers.ours, size), size),
        f"ours, merged, batch {size}": (partial(peers.ours, size, merged=True), size),
    }
    if peers.backend:
        rows["P2 stock, compiled"] = (peers.p2, 1)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for repeat in range(repeats + 1):
        for name, (call, count) in rows.items():
            value = timed(call) / count
            if repeat:
                seconds[name].append(value)
        print(f"repeat {repeat} of {repeats}", file=sys.stderr, flush=True)
    return seconds


def time_changes(peers: Peers, repeats: int) -> dict[str, list[float]]:
    """Milliseconds to change the LoRA, by the guide, by stock diffusers, and by ours.

    The guide (P0) loads everything anew, stock (P1) loads and unloads the LoRA; ours comes from
    disk or from memory.
    """
    pipeline, milliseconds = peers.engine.pipeline, {"P0": [], "P1": [], "disk": [], "host": []}
    unet = peers.mixed.unet
    rows = AddedLora(unet, "unet", unet.device)

    def reload(lora: Path) -> None:
        fresh = peers.load()
        fresh.load_lora_weights(lora.parent, weight_name=lora.name)

    def stock(lora: Path) -> None:
        peers.stock.load_lora_weights(lora.parent, weight_name=lora.name)
        peers.stock.unload_lora_weights()

    for _ in range(repeats + 1):
        lora, other = next(peers.wheel), next(peers.wheel)
        adapters = [read_adapter(path, pipeline) for path in (lora, other)]
        rows.put([adapters[1]] * 2)
        calls = {
            "P0": partial(reload, lora),
            "P1": partial(stock, lora),
            "disk": partial(read_adapter, lora, pipeline),
            "host": partial(rows.put, [adapters[0]] * 2),
        }
        for name, call in calls.items():
            milliseconds[name].append(timed(call) * 1000)
    return {name: values[1:] for name, values in milliseconds.items()}


def time_overhead(peers: Peers, repeats: int) -> list[float]:
    """Milliseconds of a job that no plain denoising loop has.

    Such a loop encodes words, doubles latents for guidance, asks the UNet, guides, takes the
    scheduler's step, decodes into pixels. What is left: waiting, choosing, changing the LoRA (in
    memory, but not in the batch), threads, delivering.
    """
    pipeline, inside, outside = peers.engine.pipeline, [0.0], []
    parts = [
        (pipeline, "encode_prompt", 1),
        (type(make_scheduler("dpmsolver++", pipeline.scheduler.config)), "set_timesteps", 1),
        (Batch, "step", 1),
        (BatchedLora, "write", -1),
        (EncodeDecode, "finish", 1),
    ]

    def counting(sign: int, function: Callable[..., Any], *given: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **options)
        finally:
            inside[0] += sign * (time.perf_counter() - started)

    originals = [(owner, name, getattr(owner, name), sign) for owner, name, sign in parts]
    for owner, name, function, sign in originals:
        bound = partial(counting, sign, function)
        setattr(owner, name, _method(bound) if isinstance(owner, type) else bound)
    loras = [next(peers.wheel) for _ in range(2)]
    for number in range(repeats + 2):
        job, lora = peers.jobs(1)[0], loras[number % 2]
        inside[0] = 0.0
        whole = timed(partial(peers.engine.draw, job, lora))
        outside.append((whole - inside[0]) * 1000)
    for owner, name, function, _ in originals:
        setattr(owner, name, function)
    return outside[2:]


def time_plain(peers: Peers, repeats: int) -> list[float]:
    """Milliseconds that a job without a LoRA takes longer here than by stock diffusers."""
    lora, more = next(peers.wheel), []
    for number in range(repeats + 1):
        (job,) = peers.jobs(1)
        plain = job.model_copy(update={"lora_scale": 0.0})
        calls = [
            partial(peers.engine.draw, plain, lora),
            lambda job=job: peers.stock(**arguments(peers.stock, [job])),
        ]
        order_of = (0, 1) if number % 2 else (1, 0)
        seconds = {which: timed(calls[which]) for which in order_of}
        more.append((seconds[0] - seconds[1]) * 1000)
    return more[1:]


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *given: Any, **options: Any) -> Any:
        return function(self, *given, **options)

    return method


def cold_start(
    model: str, device: str, steps: int = 50, backend: str | None = None
) -> tuple[float, float]:
    """Seconds from a new process to its first picture, and its peak memory in GB."""
    code = (
        "import resource, sys, tempfile; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); import engine as bench\n"
        "from stylegen.pipeline.engine import Engine; from stylegen.pipeline import load_pipeline\n"
        f"engine = Engine(load_pipeline({model!r}, device={device!r}), batch=1,\n"
        f"                compile_backend={backend!r}, merge_loras={backend is not None})\n"
        "lora = Path(tempfile.mkdtemp()) / 'lora.safetensors'\n"
        "bench.write_diffusers(lora, engine.pipeline, 16, seed=0)\n"
        f"engine.draw(bench.order(0, {steps}), lora)\n"
        "cuda = bench.torch.cuda.max_memory_allocated() / 2**30\n"
        "print(cuda or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    started = time.perf_counter()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - started, float(done.stdout.split()[-1])


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and spread."""
    return {
        "count": len(values),
        "median": statistics.median(values),
        "p99": float(np.percentile(values, 99)),
        "min": min(values),
        "max": max(values),
    }


def draw_plot(jobs: dict[str, dict[str, float]], path: Path) -> None:
    """Seconds a job, a bar each."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 2.6))
    names = list(jobs)[::-1]
    values = np.array([[jobs[n][key] for key in ("median", "min", "max")] for n in names])
    spread = np.abs(values[:, 1:].T - values[:, 0])
    colours = ["#2f6fb0" if name.startswith("ours") else "#b9c3cf" for name in names]
    axis.barh(names, values[:, 0], xerr=spread, color=colours, ecolor="#555")
    axis.set_xlabel("seconds a picture (median, minimum to maximum)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def ratios(
    jobs: dict[str, dict[str, float]], changes: dict[str, dict[str, float]], size: int
) -> dict[str, float]:
    """The figures that have bars."""
    ours, one = jobs[f"ours, batch {size}"]["median"], jobs["ours, batch 1"]["median"]
    merged = jobs[f"ours, merged, batch {size}"]["median"]
    tuned = jobs.get("P2 stock, compiled")
    p2 = {"throughput against P2": tuned["median"] / ours} if tuned else {}
    return p2 | {
        "throughput against P1": jobs["P1 stock, resident"]["median"] / ours,
        "throughput against P3": jobs[f"P3 peft mixed, batch {size}"]["median"] / ours,
        "throughput, merged against P1": jobs["P1 stock, resident"]["median"] / merged,
        "throughput against P4, the ceiling": jobs[f"P4 one LoRA, batch {size}"]["median"] / ours,
        "one job against P0, as written": jobs["P0 guide, as written"]["median"] / one,
        "one job against P0, float32": jobs["P0 guide, float32"]["median"] / one,
        "one job against P1": jobs["P1 stock, resident"]["median"] / one,
        "LoRA change against P0, from memory": changes["P0"]["median"] / changes["host"]["median"],
        "LoRA change against P1, from memory": changes["P1"]["median"] / changes["host"]["median"],
        "LoRA change against P1, from disk": changes["P1"]["median"] / changes["disk"]["median"],
    }


def main(model: str, device: str, batch: int, steps: int, repeats: int, compiled: bool) -> None:
    """Time, print, write, draw."""
    with tempfile.TemporaryDirectory() as folder:
        if model == "random-sd15":
            model = str(build_sd15(Path(folder) / model))
        cold, memory = cold_start(model, device)
        load = partial(load_pipeline, model, device=device)
        loras = write_loras(load(), Path(folder), 2 * batch)
        peers = Peers(load, batch, steps, loras, "inductor" if compiled else None)
        for engine in (peers.engine, peers.merged) if compiled else ():
            engine.warm_up()
        timed_jobs = time_jobs(peers, repeats, partial(load_as_written, model, device))
        jobs = {name: summary(v) for name, v in timed_jobs.items()}
        latency = {name: summary(v) for name, v in time_latency(peers, 4 * repeats).items()}
        changes = {name: summary(v) for name, v in time_changes(peers, 4 * repeats).items()}
        overhead = summary(time_overhead(peers, 2 * repeats))
        plain = summary(time_plain(peers, 2 * repeats))
        peers.close()
    result = {
        "device": device,
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "model": Path(model).name,
        "steps": steps,
        "batch": batch,
        "repeats": repeats,
        "seconds_per_job": jobs,
        "latency_seconds": latency,
        "lora_change_ms": changes,
        "overhead_ms_per_job": overhead,
        "more_than_stock_ms_per_job": plain,
        "cold_start_seconds": cold,
        "peak_memory_gb": memory,
        "ratios": ratios(jobs, changes, batch),
    }
    name = "engine"
    if (Path(model).name, device, batch, compiled) != ("pocket", "cpu", 4, False):
        kind = "-compiled" if compiled else ""
        name = f"engine-{Path(model).name}-{device}-{batch}{kind}"
    path = store(name, result, "torch", "diffusers", "peft")
    draw_plot(jobs, path.with_suffix(".svg"))
    show(result)


def show(result: dict[str, Any]) -> None:
    """The table."""
    for name, row in result["seconds_per_job"].items():
        print(f"{name:28} {row['median']:8.2f} s   {row['min']:.2f} to {row['max']:.2f}")
    for name, row in result["latency_seconds"].items():
        print(f"latency, {name:19} {row['median']:8.2f} s   p99 {row['p99']:.2f}")
    for name, row in result["lora_change_ms"].items():
        print(
            f"LoRA change, {name:15} {row['median']:8.2f} ms  {row['min']:.2f} to {row['max']:.2f}"
        )
    print(f"{'own time, a job':28} {result['overhead_ms_per_job']['median']:8.2f} ms")
    print(
        f"{'a plain job, ours - stock':28} {result['more_than_stock_ms_per_job']['median']:8.2f} ms"
    )
    print(f"{'cold start to picture':28} {result['cold_start_seconds']:8.2f} s")
    print(f"{'peak memory':28} {result['peak_memory_gb']:8.2f} GB")
    for name, value in result["ratios"].items():
        print(f"{name:36} {value:6.2f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(packaged() / "pocket"), help="diffusers folder")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled UNets, and P2 with them")
    given = parser.parse_args()
    for size in given.batch:
        main(given.model, given.device, size, given.steps, given.repeats, given.compile)
