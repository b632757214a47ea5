"""The broker that a run's processes share ends with the last of them, however that ends."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keeper
import pytest
from waiting import wait_until

HOLDER = """\
import signal, sys
import keeper
signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
user = keeper.hold()
print(keeper._ADDRESS.encode().hex(), flush=True)
signal.pause()"""


def holder(folder: Path) -> tuple[subprocess.Popen[str], bytes]:
    """A process that holds a broker of its own, and the address of what keeps it."""
    command = [sys.executable, "-c", HOLDER]
    process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE)
    return process, bytes.fromhex(process.stdout.readline())


def is_kept(address: bytes) -> bool:
    """Whether somebody has the address."""
    with socket.socket(socket.AF_UNIX) as asked:
        return not asked.connect_ex(address)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_keeper_ends_with_its_last_user(tmp_path: Path, end: signal.Signals) -> None:
    """Neither an interrupt nor a kill leaves one; as long as one user is there, it stays."""
    shutil.copy(keeper.__file__, tmp_path)
    (first, address), (second, same) = holder(tmp_path), holder(tmp_path)
    assert address == same != keeper._ADDRESS.encode()
    first.send_signal(end)
    first.communicate(timeout=30)
    assert is_kept(address) and second.poll() is None
    second.send_signal(end)
    second.communicate(timeout=30)
    wait_until(lambda: not is_kept(address))
