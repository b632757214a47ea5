"""A real broker for tests: a virtual host on the run's node, or a node of one's own.

Tests that stop, fill or change a node take their own (`RabbitNode`); all others take a virtual
host (`VirtualHost`), where nothing is but what they put there, and which costs next to nothing.
"""

import atexit
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import keeper
import pika
from pika.exceptions import AMQPConnectionError

_LIB = "/usr/lib/rabbitmq/bin"  # Debian's plain scripts; its wrappers want another user
_ROOT = os.environ.get("RABBITMQ_ROOT", "")
"""Folder of another Debian, whose RabbitMQ is the one to test; empty for the machine's own."""

_IN_ROOT = """\
for folder in /proc /dev "${TMPDIR:-/tmp}"; do mount --bind "$folder" "$0$folder"; done
exec chroot "$0" "$@\""""
_START_LIMIT = 240.0
_POLL = 0.1
_STATES = """\
[{{binary_to_list(Name), Ready, Unacked}}
 || [{{_, {{_, _, _, Name}}}}, {{_, Ready}}, {{_, Unacked}}]
    <- rabbit_amqqueue:info_all({0}, [name, messages_ready, messages_unacknowledged])]"""
_CLOSE = """\
rabbit_networking:close_connections(
    [Connection || Connection <- rabbit_networking:connections(),
     (catch rabbit_networking:connection_info(Connection, [vhost])) =:= [{{vhost, {0}}}]],
    <<"a test wants it">>)"""
_PERMIT = 'rabbit_auth_backend_internal:set_permissions({}, {}, {}, {}, {}, <<"tests">>)'
_ADD_USER = 'rabbit_auth_backend_internal:add_user({}, <<"pw">>, <<"tests">>)'
_ADD_HOST = 'rabbit_vhost:add({}, <<"tests">>)'
_DELETE_HOST = 'rabbit_vhost:delete({}, <<"tests">>)'

_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
log.file.level = info
"""


class RabbitError(RuntimeError):
    """RabbitMQ is not installed, or a node or one of its tools failed."""


def _tool(name: str) -> list[str]:
    """The command that runs a tool; in another root, with this machine's folder for tests in it."""
    path = f"{_ROOT}{_LIB}:{_ROOT}/usr/bin" if _ROOT else f"{_LIB}:{os.environ['PATH']}"
    if not (found := shutil.which(name, path=path)):
        raise RabbitError(f"{name} not found: run tools/ensure_packages.sh")
    if not _ROOT:
        return [found]
    return ["unshare", "--mount", "sh", "-ec", _IN_ROOT, _ROOT, found.removeprefix(_ROOT)]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different.

    None that the system gives to clients (32768 and up): while nobody listens on such a port, a
    client that asks for it may be given that very port, meet itself, and keep the broker off it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.randbelow(12_000) + 20_000
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports += [] if port in ports else [port]
    return ports


def _binary(text: str) -> str:
    """A text as Erlang writes one."""
    return f"<<{json.dumps(text)}>>"


class Broker(ABC):
    """A virtual host of a node: what RabbitMQ's clients call a broker."""

    port: int
    name: str
    """The node's."""
    vhost = "/"
    _environment: dict[str, str]
    """With which the node's tools find it."""

    @abstractmethod
    def start(self) -> None:
        """Have it answer."""

    @abstractmethod
    def close(self) -> None:
        """Remove all that was made."""

    @property
    def url(self) -> str:
        """The broker's address with the default account."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(self.vhost, safe='')}"

    def evaluate(self, expression: str) -> str:
        """Let the node evaluate an Erlang expression: what ``rabbitmqctl`` does, without its VM.

        That starts for a second or two of a CPU's time at each call; this takes milliseconds.

        Args:
            expression: Without the full stop.

        Returns:
            The value, as Erlang writes it.

        Raises:
            RabbitError: There is no such node, or it raised an error.
        """
        until = time.monotonic() + 20
        while True:
            done = subprocess.run(
                [*_tool("erl_call"), "-sname", self.name, "-e"],
                env=self._environment,
                input=f"{expression}.\n",
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            is_busy = "failed to connect to node" in done.stderr + done.stdout
            if not is_busy or time.monotonic() > until:  # its handshake has a short limit
                break
        if not done.stdout.startswith("{ok, "):
            raise RabbitError(f"{expression} failed\n{done.stdout}{done.stderr}")
        return done.stdout.removeprefix("{ok, ").removesuffix("}")

    def version(self) -> str:
        """RabbitMQ's version, as ``4.0.5``."""
        return self.evaluate("rabbit_misc:version()").strip().strip('"')

    def queue_states(self) -> dict[str, tuple[int, int]]:
        """Count every queue's messages, exactly: the queues themselves are asked.

        Returns:
            By queue: messages that are ready, and messages delivered but not acknowledged.
        """
        rows = re.findall(
            r'\{"([^"]+)", (\d+), (\d+)\}', self.evaluate(_STATES.format(_binary(self.vhost)))
        )
        return {name: (int(ready), int(unacked)) for name, ready, unacked in rows}

    def queue_state(self, queue: str) -> tuple[int, int]:
        """One of `queue_states`.

        Args:
            queue: Its name.

        Raises:
            KeyError: There is no such queue.
        """
        return self.queue_states()[queue]

    def take_all(self, queue: str) -> list[tuple[dict[str, Any], bytes]]:
        """Take out what lies in a queue, made if there is none: headers and bodies."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        channel, found = connection.channel(), []
        channel.queue_declare(queue, durable=True)
        while (message := channel.basic_get(queue, auto_ack=True))[0]:
            found.append((message[1].headers or {}, message[2]))
        connection.close()
        return found

    def close_all_connections(self) -> None:
        """Let the broker close every client's connection to this virtual host."""
        self.evaluate(_CLOSE.format(_binary(self.vhost)))

    def add_user(self, configure: str = ".*", write: str = ".*", read: str = ".*") -> str:
        """Make an account that may use what the patterns name in this virtual host, and no other.

        Args:
            configure: Pattern of the names that it may make and delete.
            write: Pattern of those that it may publish to.
            read: Pattern of those that it may consume.

        Returns:
            The broker's address with that account.
        """
        name = f"user-{secrets.token_hex(4)}"
        self.evaluate(_ADD_USER.format(_binary(name)))
        self._permit(name, configure, write, read)
        return self.url.replace("guest:guest", f"{name}:pw")

    def _permit(self, user: str, *patterns: str) -> None:
        self.evaluate(_PERMIT.format(*map(_binary, (user, self.vhost, *patterns))))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class RabbitNode(Broker):
    """A node of one's own: ``with RabbitNode() as node: pika.URLParameters(node.url)``.

    Its data outlive `stop` and `kill`, so that a test can `start` it again; `close` removes all.
    """

    def __init__(self) -> None:
        self.port, self._dist_port, self._epmd_port = free_ports(3)
        self.name = f"stylegen-{secrets.token_hex(4)}@localhost"
        self.folder = Path(tempfile.mkdtemp(prefix="stylegen-rabbit-"))
        self._own = self._write_files()
        self._environment = os.environ | self._own
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def _write_files(self) -> dict[str, str]:
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "env.conf").write_text("")
        (self.folder / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port))
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        quiet = "+sbwt none +sbwtdcpu none +sbwtdio none"
        return {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": quiet,
            "RABBITMQ_CTL_ERL_ARGS": quiet,
        }

    @property
    def place(self) -> dict[str, Any]:
        """All that another process must know to use the node."""
        return {"port": self.port, "name": self.name, "environment": self._own}

    def start(self) -> None:
        """Start the node and wait until AMQP answers.

        Raises:
            RabbitError: It is not installed, ended, or took too long; the log's tail is shown.
        """
        server = _tool("rabbitmq-server")
        if self._epmd is None:
            self._epmd = self._spawn(*_tool("epmd"), "-port", str(self._epmd_port))
        self._server = self._spawn(*server)
        limit = time.monotonic() + _START_LIMIT
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > limit:
                tail = self._log_tail()
                self.close()
                raise RabbitError(f"RabbitMQ did not start\n{tail}")
            time.sleep(_POLL)

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(  # pylint: disable=consider-using-with
                command,
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (OSError, AMQPConnectionError):
            return False
        return True

    def _log_tail(self) -> str:
        files = [self.folder / "output", *sorted(self.folder.glob("log/*.log"))]
        lines = [line for path in files for line in path.read_text(errors="replace").splitlines()]
        return "\n".join(lines[-30:])

    def stop(self) -> None:
        """End the node in good order, as an operator would."""
        if self._server is not None:
            self._signal_group(self._server, signal.SIGTERM)
            try:
                self._server.wait(30)
            except subprocess.TimeoutExpired:
                pass
            self.kill()

    def kill(self) -> None:
        """End the node at once, as a power cut would."""
        if self._server is not None:
            self._signal_group(self._server, signal.SIGKILL)
            self._server.wait(30)
            self._server = None

    def close(self) -> None:
        """End everything that was started and remove the folder; also done when Python ends."""
        self.kill()
        if self._epmd is not None:
            self._signal_group(self._epmd, signal.SIGKILL)
            self._epmd.wait(30)
            self._epmd = None
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    @staticmethod
    def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass

    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on this node.

        Args:
            *arguments: The command and its arguments.

        Returns:
            What it printed.

        Raises:
            RabbitError: It failed.
        """
        command = [*_tool("rabbitmqctl"), "-q", "-n", self.name, *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RabbitError(f"rabbitmqctl {arguments[0]} failed\n{done.stdout}{done.stderr}")
        return done.stdout

    def enable(self, plugin: str) -> None:
        """Enable one of RabbitMQ's plugins, in place of others, while the node runs and for later.

        Args:
            plugin: Its name.

        Raises:
            RabbitError: The node refused it.
        """
        (self.folder / "plugins").write_text(f"[{plugin}].\n")
        self.evaluate("rabbit:await_startup()")  # AMQP answers a moment before
        said = self.evaluate(f'rabbit_plugins:ensure("{self.folder / "plugins"}")')
        if not said.startswith("{ok, "):
            raise RabbitError(f"{plugin} was not enabled: {said}")


class VirtualHost(Broker):
    """A virtual host of its own on the node that all who want one share: see `keeper`.

    Args:
        name: ``/`` for the default one, where others' queues are, too; otherwise a new one.
    """

    def __init__(self, name: str = "") -> None:
        self.vhost = name or f"test-{secrets.token_hex(4)}"
        self._held = ExitStack()

    def start(self) -> None:
        """Have the virtual host made; the first who wants one waits for the node.

        Raises:
            RabbitError: There is no node, and this is why.
        """
        place = keeper.ask(self._held.enter_context(keeper.hold()))
        if "error" in place:
            raise RabbitError(place["error"])
        self.port, self.name = place["port"], place["name"]
        self._environment = os.environ | place["environment"]
        self.evaluate(_ADD_HOST.format(_binary(self.vhost)))
        self._permit("guest", ".*", ".*", ".*")
        if self.vhost != Broker.vhost:
            self._held.callback(self.evaluate, _DELETE_HOST.format(_binary(self.vhost)))

    def close(self) -> None:
        """Delete the virtual host with all that is in it, and need the node no longer."""
        self._held.close()
