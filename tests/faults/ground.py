"""The ground on which faults are tried: real parts, cables that break, workers, a ledger."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pika
from pika.exceptions import ChannelClosedByBroker, NackError
from PIL import Image
from proxy import Backend, BucketFront, Proxy
from rabbit import RabbitNode
from s3_server import S3Server
from waiting import wait_until as wait_for_it

from stylegen.signature.provenance import read_provenance

TOKEN = "t0ken-of-the-faults"
BUCKET = "faults"
WORKER = Path(__file__).parent / "worker.py"
ARTISTS = {"김하늘": "#d03030", "Zoë": "#30a040", "山田太郎": "#3060d0", "Amal": "#e0b020"}
_NUMBERS = itertools.count(1)
wait_until = partial(wait_for_it, timeout=60)  # processes start in it


@dataclass(frozen=True)
class Expected:
    """What must become of an id.

    Attributes:
        events: Its terminal events; each may be told again in the same words.
        code: Error code of the failure among them.
        dead: Error code of its dead letter.
        letters: How often that letter is there.
        shared: Whether two workers may draw it at once, so that its progress has no order.
    """

    events: tuple[str, ...] = ("complete",)
    code: str | None = None
    dead: str | None = None
    letters: int = 1
    shared: bool = False


def _different(hooks: list[Any]) -> list[tuple[str, str, bytes]]:
    """Events that differ in kind, id or words, in the order of arrival."""
    return list(dict.fromkeys((h.event, h.headers["webhook-id"], h.raw) for h in hooks))


@dataclass
class Verdict:
    """What a case's ledger says at its end."""

    jobs: int
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recovery: float = 0.0
    injections: int = 0

    @property
    def is_good(self) -> bool:
        """Nothing lost, nothing doubled, nothing wrong."""
        return not (self.lost or self.doubled or self.wrong)


class Keeper:
    """A worker process that is started again whenever it dies, as a supervisor would."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.exits: list[int] = []
        self._planned: set[int] = set()
        self._environment, self._log = environment, log
        self._stop, self._born = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._born.wait(30)

    def _run(self) -> None:
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        while not self._stop.is_set():
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                [sys.executable, str(WORKER)], env=self._environment, **options
            )
            self._born.set()
            self._keep_log(self.process)
            self.exits.append(self.process.wait())

    def _keep_log(self, process: "subprocess.Popen[bytes]") -> None:
        """Until the process ends; a pipe has room also where it can write no file."""
        assert process.stdout
        with process.stdout as lines, self._log.open("ab", buffering=0) as log:
            for line in lines:
                log.write(line)

    def allow(self, code: int) -> None:
        """Let it end with this code, as often as it likes."""
        self._planned.add(code)

    def signal(self, number: int) -> None:
        """Send a signal to the process of the moment."""
        assert self.process
        self._planned.add({signal.SIGTERM: 0}.get(number, -number))
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait_for_exit(self, count: int = 1, timeout: float = 60) -> int:
        """Wait until it has ended so many times; returns the last code."""
        wait_until(lambda: len(self.exits) >= count, timeout=timeout)
        self._planned.add(self.exits[count - 1])
        return self.exits[count - 1]

    def unplanned(self) -> list[int]:
        """Codes of the exits that the case neither caused nor waited for."""
        return [code for code in self.exits if code not in self._planned]

    def close(self) -> None:
        """End it in good order, or else at once; and for good."""
        self._stop.set()
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self._thread.join(20)
        if self._thread.is_alive():
            self.signal(signal.SIGKILL)
            self._thread.join(10)


class Ground:
    """One case's queue, workers, jobs and verdict; broker, bucket and backend are lent to it."""

    def __init__(self, rabbit: RabbitNode, s3: S3Server) -> None:
        self.rabbit, self.s3 = rabbit, s3
        self.folder = Path(tempfile.mkdtemp(prefix="stylegen-faults-"))
        self.queue = f"faults_{self.folder.name[-8:]}"
        self.backend = Backend()
        self.front = BucketFront(s3.endpoint_url)
        self.cables = {
            "broker": Proxy("127.0.0.1", rabbit.port),
            "bucket": Proxy("127.0.0.1", self.front.server_port),
            "receiver": Proxy("127.0.0.1", self.backend.server_port),
        }
        self.origin = f"http://127.0.0.1:{self.cables['receiver'].port}"
        self.expected: dict[int, Expected] = {}
        self.artists: dict[int, str] = {}
        self.styles: dict[int, str] = {}
        """Colours of the pictures whose artist has another by now."""
        self.workers: list[Keeper] = []
        self.injections = 0
        self._healed: float | None = None
        self._late: list[int] = []
        self._fill_bucket()

    def _fill_bucket(self) -> None:
        self.client = self.s3.client()
        with suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
            self.client.create_bucket(Bucket=BUCKET)
        for artist, colour in ARTISTS.items():
            self.put_lora(artist, colour)

    def put_lora(self, artist: str, colour: str, size: int = 8) -> None:
        """An artist's "LoRA": a colour, again and again up to so many bytes."""
        key, line = f"loras/{list(ARTISTS).index(artist)}.safetensors", f"{colour}\n".encode()
        self.client.put_object(Bucket=BUCKET, Key=key, Body=line * (size // len(line)))

    def __enter__(self) -> "Ground":
        threading.Thread(target=self.backend.serve_forever, args=(0.05,), daemon=True).start()
        self.declare()
        return self

    def __exit__(self, *_: Any) -> None:
        self.backend.ended.set()
        for worker in self.workers:
            worker.close()
        for server in (self.backend, self.front):
            server.shutdown()
            server.server_close()
        for cable in self.cables.values():
            cable.close()

    # The producer's side

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel to the real broker, past the cable."""
        connection = pika.BlockingConnection(pika.URLParameters(self.rabbit.url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def declare(self, **arguments: Any) -> None:
        """Make the queue as the platform's producers do."""
        with self.channel() as channel:
            channel.queue_declare(self.queue, durable=True, arguments=arguments)

    def fields(self, number: int, *tags: str) -> dict[str, Any]:
        """A job's message."""
        artist = list(ARTISTS)[number % len(ARTISTS)]
        self.artists[number] = artist
        return {
            "generation_id": number,
            "style_id": number % len(ARTISTS),
            "lora_model_url": f"s3://{BUCKET}/loras/{number % len(ARTISTS)}.safetensors",
            "prompt_tags": ["flat", *tags],
            "artist_name": artist,
            "webhook_url": self.origin,
        }

    def order(
        self,
        count: int = 1,
        *tags: str,
        expected: Expected = Expected(),
        priority: int | None = None,
    ) -> list[int]:
        """Publish jobs, confirmed; their ids are in the ledger from then on."""
        numbers = [next(_NUMBERS) for _ in range(count)]
        self.publish(*(self.fields(number, *tags) for number in numbers), priority=priority)
        self.expected |= dict.fromkeys(numbers, expected)
        if self._healed is not None:
            self._late += numbers
        return numbers

    def order_on(self, channel: Any, expected: Expected) -> bool:
        """Publish one job on a channel with confirms; whether the queue had room for it."""
        number = next(_NUMBERS)
        body = json.dumps(self.fields(number)).encode()
        try:
            channel.basic_publish("", self.queue, body, pika.BasicProperties(delivery_mode=2))
        except NackError:
            return False
        self.expected[number] = expected
        return True

    def publish(self, *messages: dict[str, Any], priority: int | None = None) -> None:
        """Put messages into the queue as they are."""
        kind = pika.BasicProperties(delivery_mode=2, timestamp=int(time.time()), priority=priority)
        with self.channel() as channel:
            channel.confirm_delivery()
            for message in messages:
                body = json.dumps(message).encode()
                channel.basic_publish("", self.queue, body, kind, mandatory=True)

    # The worker's side

    def environment(self, **more: str) -> dict[str, str]:
        """What a worker is told; every address is a cable's."""
        return os.environ | {
            "INTERNAL_API_TOKEN": TOKEN,
            "WEBHOOK_SECRET": "whsec_c3R5bGVnZW4tdGVzdC1zZWNyZXQtMDEyMzQ1Njc4OQ==",
            "WEBHOOK_ALLOWED_ORIGINS": self.origin,
            "RABBITMQ_URL": f"amqp://guest:guest@127.0.0.1:{self.cables['broker'].port}/%2f",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.cables['bucket'].port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "S3_BUCKET": BUCKET,
            "STYLEGEN_QUEUE": self.queue,
            "STYLEGEN_RETRY_DELAYS": "1,2",
            "STYLEGEN_PREFETCH": "2",
            "STYLEGEN_CACHE_FOLDER": str(self.folder / "cache"),
            "FAULT_NOTES": str(self.folder),
            **more,
        }

    def start(self, **more: str) -> Keeper:
        """One more worker; returns when the queue has its consumer."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        self.workers.append(Keeper(self.environment(**more), log))
        wait_until(lambda: self.consumers() >= len(self.workers))
        return self.workers[-1]

    def command(self, *arguments: str) -> str:
        """Run the worker's program for another purpose; returns what it printed."""
        line = [sys.executable, str(WORKER), *arguments]
        done = subprocess.run(
            line, env=self.environment(), capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def consumers(self) -> int:
        """How many workers are registered."""
        with self.channel() as channel:
            return channel.queue_declare(self.queue, passive=True).method.consumer_count

    def count(self, ending: str) -> int:
        """Messages that wait in a queue beside the work queue; 0 if there is no such queue."""
        with self.channel() as channel:
            try:
                beside = channel.queue_declare(f"{self.queue}.{ending}", passive=True)
            except ChannelClosedByBroker:
                return 0
            return int(beside.method.message_count)

    def inject(self, count: int = 1) -> None:
        """Note that something was broken so many times."""
        self.injections += count

    def healed(self) -> None:
        """Note that the fault is over now; recovery is measured from here."""
        self._healed = time.monotonic()

    # What became of it

    def told(self, number: int) -> list[Any]:
        """The terminal events of an id that were taken."""
        return self._terminal(self.backend.received, number)

    @staticmethod
    def _terminal(hooks: list[Any], number: int) -> list[Any]:
        return [
            hook
            for hook in list(hooks)
            if hook.event != "progress" and hook.body["generation_id"] == number
        ]

    def free(self, number: int) -> None:
        """Let a job that is held be drawn to its end."""
        (self.folder / f"free-{number}").touch()

    def drawn(self, number: int) -> int:
        """How often the drawing of an id was begun."""
        return len(list(self.folder.glob(f"drawn-{number}-*")))

    def rate(self, seconds: float) -> int:
        """Jobs that end within so many seconds from now."""
        before = len(self.backend.told_at)
        time.sleep(seconds)  # the length of the measurement
        return len(self.backend.told_at) - before

    def wait_told(self, numbers: list[int], timeout: float = 90) -> None:
        """Wait until each id has its terminal event."""
        wait_until(lambda: all(self.told(number) for number in numbers), timeout=timeout)

    def wait_progress(self, number: int, timeout: float = 60) -> None:
        """Wait until an id is being drawn."""
        wait_until(
            lambda: any(h.body["generation_id"] == number for h in list(self.backend.received)),
            timeout=timeout,
        )

    def settle(self, timeout: float = 90) -> Verdict:
        """Wait for the end of all jobs, and read the ledger."""
        verdict = Verdict(len(self.expected), injections=self.injections)
        with suppress(AssertionError):
            wait_until(lambda: all(map(self._has_ended, self.expected)), timeout=timeout)
            wait_until(self._is_quiet, timeout=timeout)
        verdict.recovery = self._recovery()
        self._check_queues(verdict)
        for worker in self.workers:
            verdict.wrong += [f"a worker ended by itself: {code}" for code in worker.unplanned()]
        for number, expected in self.expected.items():
            self._check(number, expected, verdict)
            if not expected.shared:
                self._check_progress(number, expected, verdict)
        return verdict

    def _has_ended(self, number: int) -> bool:
        events = [hook.event for hook in self.told(number)]
        return all(event in events for event in self.expected[number].events)

    def _recovery(self) -> float:
        """From the end of the fault to the first job of those ordered since; or else of any."""
        healed = self._healed or time.monotonic()
        times = self.backend.told_at
        ends = [times[n] for n in self._late or self.expected if times.get(n, 0.0) > healed]
        return min(ends, default=healed) - healed

    def _states(self) -> dict[str, tuple[int, int]]:
        states = self.rabbit.queue_states().items()
        return {name: state for name, state in states if name.startswith(self.queue)}

    def _is_quiet(self) -> bool:
        dead = len(self._wanted_letters())
        states = self._states()
        letters = states.pop(f"{self.queue}.dead", (0, 0))
        return letters == (dead, 0) and all(state == (0, 0) for state in states.values())

    def _check_queues(self, verdict: Verdict) -> None:
        states = self._states()
        states.pop(f"{self.queue}.dead", None)
        verdict.wrong += [f"{name}: {state}" for name, state in states.items() if any(state)]
        wanted, found = sorted(self._wanted_letters()), sorted(self._dead_letters())
        if wanted != found:
            verdict.wrong.append(f"dead letters {found}, not {wanted}")

    def _wanted_letters(self) -> list[tuple[int, str]]:
        expected = self.expected.items()
        return [(n, each.dead) for n, each in expected if each.dead for _ in range(each.letters)]

    def _dead_letters(self) -> list[tuple[int, str]]:
        """Ids and codes of the dead letters, which are taken out."""
        letters = self.rabbit.take_all(f"{self.queue}.dead")
        code = "x-stylegen-error-code"
        return [(json.loads(body)["generation_id"], headers[code]) for headers, body in letters]

    def _check(self, number: int, expected: Expected, verdict: Verdict) -> None:
        told, seen = self.told(number), self._terminal(self.backend.seen, number)
        events = tuple(event for event, *_ in _different(told))
        if len(events) < len(expected.events):
            verdict.lost.append(f"{number} was told {events}, not {expected.events}")
        elif events != expected.events:
            verdict.wrong.append(f"{number} was told {events}, not {expected.events}")
        if len(_different(seen)) > max(1, len(expected.events)):
            verdict.doubled.append(f"{number}: {[hook.raw for hook in seen]}")
        for hook in told:
            if hook.event == "failed" and hook.body["error_code"] != expected.code:
                verdict.wrong.append(f"{number}: {hook.body}")
        if any(hook.event == "complete" for hook in told):
            self._check_picture(number, verdict)

    def _check_progress(self, number: int, expected: Expected, verdict: Verdict) -> None:
        """Each drawing has rising milestones, and nothing comes after the last terminal event."""
        hooks = [h for h in list(self.backend.seen) if h.body["generation_id"] == number]
        ends = [place for place, hook in enumerate(hooks) if hook.event != "progress"]
        if expected.events:
            ends = [place for place in ends if hooks[place].event == expected.events[-1]]
        if ends and any(hook.event == "progress" for hook in hooks[ends[0] :]):
            verdict.wrong.append(f"{number}: progress after its end")
        steps = [hook.body["progress"] for hook in hooks if hook.event == "progress"]
        percents = [step["progress_percent"] for step in steps]
        rises = bool(percents) + sum(after <= before for before, after in pairwise(percents))
        if rises > self.drawn(number):
            verdict.wrong.append(f"{number}: drawn {self.drawn(number)} times, {percents} %")
        for step in steps:
            if 100 * step["current_step"] < step["progress_percent"] * step["total_steps"]:
                verdict.wrong.append(f"{number}: told before it was reached: {step}")

    def _check_picture(self, number: int, verdict: Verdict) -> None:
        try:
            manifest = self._read(f"manifests/gen_{number}.json")
            jpeg = self._read(f"generations/gen_{number}.jpg")
        except self.client.exceptions.NoSuchKey:
            verdict.lost.append(f"{number} has no picture")
            return
        if json.loads(manifest)["picture"] != hashlib.sha256(jpeg).hexdigest():
            verdict.wrong.append(f"{number}: the picture is not its manifest's")
        artist = self.artists[number]
        if artist not in read_provenance(jpeg).get("artist", ""):
            verdict.wrong.append(f"{number} is signed for another")
        with Image.open(BytesIO(jpeg)) as picture:
            seen = picture.convert("RGB").getpixel((5, 5))
        colour = self.styles.get(number, ARTISTS[artist])
        wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        if max(abs(a - b) for a, b in zip(seen, wanted, strict=True)) > 12:
            verdict.wrong.append(f"{number} is in another's style: {seen}")

    def _read(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data

    def logs(self) -> str:
        """What the workers logged."""
        return "\n".join(p.read_text("utf-8", "replace") for p in self.folder.glob("*.log"))
