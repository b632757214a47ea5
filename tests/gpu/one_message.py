"""A broker of one message, by pika's own codec: for machines on which RabbitMQ can't be had.

It says yes to everything, delivers its message to the first consumer of its queue, and remembers
what was acknowledged. Whatever RabbitMQ itself does is tested with RabbitMQ.
"""

import socket
import threading
from collections.abc import Iterator
from typing import Any

from pika import BasicProperties, frame, spec
from pika.amqp_object import Method

FRAME_MAX = 131_072
SETTLED = (spec.Basic.Ack, spec.Basic.Nack, spec.Basic.Reject)


class OneMessageBroker:
    """Listens on loopback until its block ends.

    Args:
        queue: The queue's name.
        body: The message.
    """

    def __init__(self, queue: str, body: bytes) -> None:
        self._queue, self._body = queue, body
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.delivered, self.settled = threading.Event(), []  # type: ignore[var-annotated]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:guest@127.0.0.1:{self._socket.getsockname()[1]}/%2F"

    def __enter__(self) -> "OneMessageBroker":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.recv(8)  # the protocol's name
            start = spec.Connection.Start(0, 9, {"capabilities": {"publisher_confirms": True}})
            client.sendall(frame.Method(0, start).marshal())
            for received in _frames(client):
                for answer in self._answers(received):
                    client.sendall(answer)

    def _answers(self, received: Any) -> Iterator[bytes]:
        if not isinstance(received, frame.Method):
            return
        channel, method = received.channel_number, received.method
        if isinstance(method, SETTLED):
            self.settled.append(method)
        if reply := self._reply(method):
            yield frame.Method(channel, reply).marshal()
        if isinstance(method, spec.Basic.Consume) and method.queue == self._queue:
            yield from self._delivery(channel, method.consumer_tag)

    def _reply(self, method: Method) -> Method | None:
        if isinstance(method, spec.Connection.StartOk):
            return spec.Connection.Tune(2047, FRAME_MAX, 0)
        if isinstance(method, spec.Queue.Declare):
            return spec.Queue.DeclareOk(method.queue or "own", 0, 0)
        if isinstance(method, spec.Basic.Consume):
            return spec.Basic.ConsumeOk(method.consumer_tag)
        if isinstance(method, spec.Basic.Cancel):
            return spec.Basic.CancelOk(method.consumer_tag)
        group = getattr(spec, method.NAME.partition(".")[0])
        reply = getattr(group, f"{type(method).__name__}Ok", None)
        return reply() if reply else None

    def _delivery(self, channel: int, tag: str) -> Iterator[bytes]:
        yield frame.Method(channel, spec.Basic.Deliver(tag, 1, False, "", self._queue)).marshal()
        properties = BasicProperties(content_type="application/json", delivery_mode=2)
        yield frame.Header(channel, len(self._body), properties).marshal()
        yield frame.Body(channel, self._body).marshal()
        self.delivered.set()


def _frames(client: socket.socket) -> Iterator[Any]:
    """What a client says, frame by frame, until it hangs up."""
    data = b""
    while True:
        used, received = frame.decode_frame(data)
        data = data[used:]
        if received is not None:
            yield received
            continue
        try:
            more = client.recv(65_536)
        except OSError:
            return
        if not more:
            return
        data += more
