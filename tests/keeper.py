"""One broker for all who want one at the same time: begun for the first, ended after the last.

A node costs seconds of a CPU's time, and a run has dozens of processes that want one. So a process
of its own keeps it, and whoever uses it has a connection to that process, which the system closes
when the user ends, in whatever way. A run has one all along, lest the node end between two users.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import sha256
from typing import Any

_OURS = f"{os.path.realpath(__file__)}\n{os.environ.get('RABBITMQ_ROOT', '')}\n{os.getuid()}"
_ADDRESS = f"\0stylegen-keeper-{sha256(_OURS.encode()).hexdigest()}"
"""Of these tests and this RabbitMQ alone; no file, so that none is left by one that was killed."""
_POLL = 0.02


def hold() -> socket.socket:
    """Connect to the keeper, and start it if there is none; it keeps the broker until all hang up.

    Returns:
        The connection.
    """
    while True:
        user = socket.socket(socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX) as listener, suppress(ConnectionError):
            is_first = _claims(listener)
            user.connect(_ADDRESS)
            if is_first:
                _start_keeper(listener)
            if user.recv(1):
                return user
        user.close()  # that keeper was about to end, or was not listening yet
        time.sleep(_POLL)


def _claims(listener: socket.socket) -> bool:
    """Whether the address was nobody's and is now this socket's."""
    try:
        listener.bind(_ADDRESS)
    except OSError:
        return False
    listener.listen(128)
    return True


def _start_keeper(listener: socket.socket) -> None:
    """Start it in a session of its own, where no terminal interrupts it, with the address."""
    subprocess.run(
        [sys.executable, __file__, str(listener.fileno())],
        pass_fds=(listener.fileno(),),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def ask(user: socket.socket) -> dict[str, Any]:
    """What the keeper says of its node, begun now if nobody has asked before.

    Args:
        user: The asker's connection, from `hold`.

    Returns:
        `rabbit.RabbitNode.place`, or ``error``: why there is none.
    """
    user.sendall(b"?")
    with user.makefile("rb") as answer:
        place: dict[str, Any] = json.loads(answer.readline())
    return place


class _Keeper:
    """Answers the users, until there are none."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._node = listener, None
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Keep the node until the last user has hung up."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            is_used = True
            while is_used:
                for key, _ in self._selector.select():
                    self._serve(key.fileobj)
                is_used = len(self._selector.get_map()) > 1
        finally:
            self._listener.close()  # whoever comes now starts another
            if self._node:
                self._node.close()

    def _serve(self, caller: Any) -> None:
        """Welcome a user, answer its question, or note that it has hung up."""
        if caller is self._listener:
            user, answer = caller.accept()[0], b"!"
            self._selector.register(user, selectors.EVENT_READ)
        else:
            user, answer = caller, self._answer(caller)
        if answer:
            with suppress(ConnectionError):
                user.sendall(answer)
        else:
            self._selector.unregister(user)
            user.close()

    def _answer(self, user: socket.socket) -> bytes:
        """What a user is told; nothing if it does not ask."""
        try:
            if not user.recv(1):
                return b""
        except ConnectionError:
            return b""
        try:
            self._node = self._node or _new_node()
            place = self._node.place
        except RuntimeError as error:
            place = {"error": str(error)}
        return json.dumps(place).encode() + b"\n"


def _new_node() -> Any:
    """A node that can do what the documentation asks for; started."""
    from rabbit import RabbitNode  # a run without a broker does without it

    node = RabbitNode()
    (node.folder / "plugins").write_text("[rabbitmq_consistent_hash_exchange].\n")
    node.start()
    return node


if __name__ == "__main__" and not os.fork():  # its parent is no user's child
    _Keeper(socket.socket(fileno=int(sys.argv[1]))).run()
